"""A real cache, requests that work on it step by step, and a shadow of what its pages hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.interleavings.picture import NodeView, Picture, prefix_number
from analysis.interleavings.scenarios import (
    STRIDE,
    IsolationError,
    Request,
    Scenario,
    Schedule,
    Step,
)
from analysis.interleavings.spec import Broken, check, check_at_end
from analysis.shortfin.cache.driver import Actor
from analysis.shortfin.cache.probe import held_back
from analysis.shortfin.config import EngineConfig
from analysis.treatments import treat

if TYPE_CHECKING:
    from analysis.shortfin.standalone import BareEngine, BareSystem


class Stage:
    """One run of a scenario on a cache of its own. Close it before the next one is opened.

    Treatments are applied before anything is done, and taken back when it is closed.
    """

    def __init__(
        self,
        system: BareSystem,
        kind: type[Actor],
        scenario: Scenario,
        prefix_sharing: str,
        treatments: Iterable[str] = (),
    ) -> None:
        from analysis.shortfin.standalone import BareEngine

        self.scenario, self.kind = scenario, kind
        decoding = sum(request.decodes > 0 for request in scenario.requests)
        self.page_count = scenario.pages + (kind.block - 1) * decoding
        self.cache: Any = system.cache(prefix_sharing, self.page_count, STRIDE)
        self.pool: Any = self.cache.page_pool
        self.engine: BareEngine = BareEngine(
            system,
            self.cache,
            EngineConfig(prefix_sharing=prefix_sharing, page_count=self.page_count),
        )
        self.content: list[list[int | None]] = [[None] * STRIDE for _ in range(self.page_count)]
        """Which prefix the token in every slot of every page ends; None: not written yet."""
        self.wanted = 0
        """Pages that the last operation asked the pool for."""
        self.padding_given = False
        self.outside_room: dict[str, int] = {}
        """By request, a position that it wrote without having a page for it."""
        self.flown: dict[str, int] = {}
        """By request, how many of its tokens were flown."""
        self.listener: Callable[[str, list[int], list[int], int], None] | None = None
        """Told of invocations: the request, all its tokens, its block table, the first position."""
        self.published: set[int] = set()
        """Pages that were in the trie since they were last free."""
        self.over = False
        """Whether the thread that does everything has ended."""
        self.evict_at_end = True
        """Whether all is evicted when every request has ended, to see what is free then."""
        self.broken: tuple[Broken, ...] = ()
        self._undo = ExitStack()
        self._watch_pool()
        self._undo.enter_context(treat(self.engine, *treatments))  # type: ignore[arg-type]
        self.elsewhere = [
            page.index for page in self.pool.acquire_free_pages(scenario.elsewhere) or ()
        ]
        self.actors: dict[str, Actor] = {}
        self.look()
        for request in scenario.requests:
            self.add(request)

    def add(self, request: Request) -> Actor:
        """Let one more request come."""
        actor = self.kind(request, self.cache, self._invocation(request.name))
        self.actors[request.name] = actor
        self.look()
        return actor

    def close(self) -> None:
        """Take the treatments back."""
        self._undo.close()

    def _watch_pool(self) -> None:
        acquire, free = self.pool.acquire_free_pages, self.pool.free_pages

        def acquired(count: int) -> Any:
            self.wanted = count
            pages = acquire(count)
            for page in pages or ():
                self.padding_given |= page.index == 0
                self.content[page.index] = [None] * STRIDE  # whatever it held before
            return pages

        def freed(pages: Any) -> Any:
            self.published.difference_update(page.index for page in pages)
            return free(pages)

        self.pool.acquire_free_pages, self.pool.free_pages = acquired, freed

    # -- invocations ---------------------------------------------------------------------------

    def _invocation(self, name: str) -> Any:
        def fly(tokens: list[int], table: list[int], start: int) -> None:
            self.flown[name] = len(tokens)
            if self.listener is not None:
                self.listener(name, tokens, table, start)
            for position in range(start, len(tokens)):
                block, slot = divmod(position, STRIDE)
                if block >= len(table):
                    self.outside_room.setdefault(name, position)
                    continue  # the padding page gets it
                self.content[table[block]][slot] = prefix_number(tokens[: position + 1])

        return fly

    # -- steps -----------------------------------------------------------------------------

    def step(self, name: str) -> tuple[Broken, ...]:
        """Let a request do its next step, and return the rules that do not hold afterwards."""
        before, was_over = self.picture, self.over
        error = self.go(name)
        if was_over:
            return ()
        self.look()
        raised = () if error is None else self._raised(self.actors[name], error, before)
        self.broken = (*raised, *check(self.picture))
        if self.evict_at_end and not self.over and all(a.over for a in self.actors.values()):
            self.broken += check_at_end(self)
        return self.broken

    def go(self, name: str) -> Exception | None:
        """Let a request do its next step, unlooked at; return the error that ended it, if any."""
        actor = self.actors[name]
        operation = actor.steps[actor.position]
        actor.position += 1
        if self.over or actor.failed:
            return None
        self.wanted = 0
        try:
            actor.do(operation)
        except Exception as error:
            if _is_shortage(error):
                self.over = actor.fail(operation)
            else:
                actor.failed, self.over = True, actor.fatal
            return error
        finally:
            self._note_published()
        return None

    def look(self) -> None:
        """Look at the cache, for the next step to be compared with."""
        self.picture = self._look()

    def _note_published(self) -> None:
        waiting = [self.cache.root] if hasattr(self.cache, "root") else []
        while waiting:
            for node in waiting.pop().children.values():
                self.published.add(node.page.index)
                waiting.append(node)

    def _raised(self, actor: Actor, error: Exception, before: Picture) -> tuple[Broken, ...]:
        if not _is_shortage(error):
            text = f"{actor.name}.{actor.steps[actor.position - 1]} raises {type(error).__name__}."
            return (Broken("raises", text, actor.name),)
        room = before.free_or_evictable(actor.name)
        if self.wanted > room:
            return ()
        text = (
            f"{actor.name} gets no pages: it wanted {self.wanted}, and {room} were free or cached"
            " for nobody who is under way."
        )
        return (Broken("refused", text, actor.name),)

    def run(self, schedule: Schedule) -> list[tuple[Broken, ...]]:
        """Carry out a schedule; return what did not hold after each step.

        Raises IsolationError for a step that the request does not have then.
        """
        found = []
        for step in schedule.steps:
            actor = self.actors.get(step.request)
            if actor is None or actor.over or actor.steps[actor.position] != step.operation:
                raise IsolationError(self._impossible(step, actor))
            found.append(self.step(step.request))
        return found

    def _impossible(self, step: Step, actor: Actor | None) -> str:
        if actor is None:
            return (
                f"The scenario {self.scenario.name!r} has no request {step.request}: it has"
                f" {', '.join(self.actors)}."
            )
        due = "nothing more" if actor.over else actor.steps[actor.position]
        return f"{step} is not what {step.request} does then: it does {due}."

    # -- looking ---------------------------------------------------------------------------

    def _look(self) -> Picture:
        nodes, unreachable = self._walk()
        under_way = {n: a for n, a in self.actors.items() if a.position and not a.over}
        return Picture(
            page_count=self.page_count,
            free=[page.index for page in self.pool.available_pages],
            kept=set(held_back.get(id(self.pool), list)()),
            elsewhere=self.elsewhere,
            nodes=nodes,
            unreachable=unreachable,
            aside=[page.index for page in getattr(self.cache, "_duplicated_pages", ())],
            uses={n: a.uses() for n, a in under_way.items()},
            found={page for a in under_way.values() for page in a.found()},
            holds={n: set(a.holds()) for n, a in self.actors.items()},
            references={n: a.references() for n, a in self.actors.items()},
            tokens={n: a.tokens for n, a in self.actors.items()},
            flown=dict(self.flown),
            content=self.content,
            outside_room=self.outside_room,
            padding_given=self.padding_given,
            has_trie=hasattr(self.cache, "root"),
        )

    def _walk(self) -> tuple[list[NodeView], list[NodeView]]:
        root = getattr(self.cache, "root", None)
        if root is None:
            return [], []
        leaves = self.cache.leaves
        found: dict[int, NodeView] = {}

        def view(node: Any, parent: NodeView | None, key: tuple[int, ...]) -> NodeView:
            path = key if parent is None else (*parent.path, *key)
            return NodeView(
                node, len(found), parent, None if node is root else node.page.index, path,
                len(key), node.ref_count.count, node in leaves, len(node.children),
                node.tokens == key and (parent is None or node.parent is parent.node),
            )  # fmt: skip

        waiting: list[tuple[Any, NodeView | None, tuple[int, ...]]] = [(root, None, ())]
        while waiting:
            node, parent, key = waiting.pop()
            if id(node) in found:
                continue
            mine = found[id(node)] = view(node, parent, key)
            children = sorted(node.children.items(), reverse=True)
            waiting += [(child, mine, tokens) for tokens, child in children]
        reachable = list(found.values())
        strays = [*sorted(leaves, key=lambda leaf: leaf.access_time)]
        strays += [node for actor in self.actors.values() for node in actor.nodes()]
        for node in strays:
            if id(node) not in found:
                found[id(node)] = view(node, None, node.tokens)
        return reachable, list(found.values())[len(reachable) :]

    # -- telling states apart --------------------------------------------------------------

    def fingerprint(self) -> tuple[Any, ...]:
        """Return what equals that of another moment only if all that can follow is the same.

        Pages are interchangeable, but for page 0, so they are named in the order in which they are
        come upon. Ages of nodes count by their order only.
        """
        picture = self.picture
        names: dict[int, int] = {0: 0}

        def pages(numbers: Iterable[int]) -> tuple[int, ...]:
            return tuple([names.setdefault(number, len(names)) for number in numbers])

        everything = [*picture.nodes, *picture.unreachable]
        numbers = {id(view.node): view.number for view in everything}

        def nodes(known: Iterable[Any]) -> tuple[int | None, ...]:
            return tuple([numbers.get(id(node)) for node in known])

        idle = set(picture.free).difference(picture.cached, *picture.uses.values(),
                                            *picture.holds.values())  # fmt: skip
        ages = sorted(range(len(everything)), key=lambda i: everything[i].node.access_time)
        trie = tuple(
            [
                (view.path, view.refs, view.leaf, view.children, view.sound,
                 pages([view.node.page.index]), nodes([view.node.parent]))
                for view in everything
            ]
        )  # fmt: skip
        allocated = [page.index for page in getattr(self.cache, "_allocated_pages", ())]
        actors = tuple([actor.state(pages, nodes) for actor in self.actors.values()])
        lists = (
            pages(picture.free), pages(picture.aside), pages(allocated), pages(self.elsewhere),
            pages(sorted(picture.kept)),
        )  # fmt: skip
        # What a page held is gone when it is acquired, so nobody can learn it from a free one.
        contents = [(names[page], tuple(slots)) for page, slots in enumerate(self.content)
                    if page in names and page not in idle]  # fmt: skip
        published = sorted(names.setdefault(page, len(names)) for page in self.published)
        return (
            trie, tuple(ages), actors, lists, tuple(sorted(contents)), tuple(published),
            self.over, self.padding_given, tuple(self.outside_room), tuple(
                [actor.position for actor in self.actors.values()]),
        )  # fmt: skip


def _is_shortage(error: Exception) -> bool:
    return type(error).__name__ == "CacheAllocationFailure"
