"""A real cache, requests that use it operation by operation, and a shadow of its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.core.wording import numbered
from analysis.interleavings.scenarios import STRIDE, IsolationError, Scenario, Schedule
from analysis.interleavings.spec import Violation, check
from analysis.interleavings.view import CacheView, prefix_number
from analysis.shortfin.cache.driver import Invoke, Request, RequestDriver
from analysis.shortfin.cache.trie import Trie, read_trie
from analysis.shortfin.config import EngineConfig
from analysis.snapshots.snapshot import CacheState, Node
from analysis.treatments import treat

if TYPE_CHECKING:
    from analysis.shortfin.standalone import StandaloneEngine, StandaloneSystem


class CacheHarness:
    """One run of a scenario on its own cache. Close it before the next one is opened.

    Treatments are applied before the first operation, and reverted by `close`.
    """

    def __init__(
        self,
        system: StandaloneSystem,
        kind: type[RequestDriver],
        scenario: Scenario,
        prefix_sharing: str,
        treatments: Iterable[str] = (),
    ) -> None:
        from analysis.shortfin.standalone import StandaloneEngine

        self.scenario, self.kind = scenario, kind
        decoding = sum(request.decodes > 0 for request in scenario.requests)
        self.page_count = scenario.pages + (kind.block - 1) * decoding
        self.cache: Any = system.cache(prefix_sharing, self.page_count, STRIDE)
        self.pool: Any = self.cache.page_pool
        config = EngineConfig(prefix_sharing=prefix_sharing, page_count=self.page_count)
        self.engine: StandaloneEngine = StandaloneEngine(system, self.cache, config)
        self.drivers: dict[str, RequestDriver] = {}
        self.over = False
        """Whether the only thread has ended."""
        self.evict_at_end = True
        """Whether to evict everything when all requests have ended, to check what is free."""
        self.on_invocation: Callable[[str, list[int], list[int], int], None] | None = None
        """Called with the request, its tokens, its block table and the first written position."""
        self._content: list[list[int | None]] = [[None] * STRIDE for _ in range(self.page_count)]
        self._written: dict[str, int] = {}
        self._missing_page: dict[str, int] = {}
        self._padding_given = False
        self._published: set[int] = set()
        """Pages that have been in the trie since they were last free."""
        self._wanted = 0
        """Number of pages that the last operation requested from the pool."""
        self._undo = ExitStack()
        self._hook_pool()
        self._undo.enter_context(treat(self.engine, *treatments))
        self._reserved = [p.index for p in self.pool.acquire_free_pages(scenario.reserved) or ()]
        self.add(*scenario.requests)

    def add(self, *requests: Request) -> None:
        """Add requests, and read the cache."""
        for request in requests:
            invoke = self._invocation(request.name)
            self.drivers[request.name] = self.kind(request, self.cache, invoke)
        self.look()

    def close(self) -> None:
        """Revert the treatments."""
        self._undo.close()

    def _hook_pool(self) -> None:
        acquire, free = self.pool.acquire_free_pages, self.pool.free_pages

        def acquired(count: int) -> Any:
            self._wanted = count
            pages = acquire(count)
            for page in pages or ():
                self._padding_given |= page.index == 0
                self._content[page.index] = [None] * STRIDE  # discard the old content
            return pages

        def freed(pages: Any) -> Any:
            self._published.difference_update(page.index for page in pages)
            return free(pages)

        self.pool.acquire_free_pages, self.pool.free_pages = acquired, freed

    def _invocation(self, name: str) -> Invoke:
        def invoke(tokens: list[int], table: list[int], start: int) -> None:
            self._written[name] = len(tokens)
            if self.on_invocation is not None:
                self.on_invocation(name, tokens, table, start)
            for position in range(start, len(tokens)):
                block, slot = divmod(position, STRIDE)
                if block >= len(table):
                    self._missing_page.setdefault(name, position)
                    continue  # written to the padding page
                self._content[table[block]][slot] = prefix_number(tokens[: position + 1])

        return invoke

    # -- operations ------------------------------------------------------------------------

    def step(self, name: str) -> tuple[Violation, ...]:
        """Run a request's next operation, and return the violated rules."""
        before, was_over = self.view, self.over
        error = self.perform(name)
        if was_over:
            return ()
        self.look()
        raised = () if error is None else self._raised(self.drivers[name], error, before)
        violations = (*raised, *check(self.view))
        if self.evict_at_end and not self.over and all(d.over for d in self.drivers.values()):
            violations += self._check_at_end()
        return violations

    def perform(self, name: str) -> Exception | None:
        """Run a request's next operation without checks; return its error, if any."""
        driver = self.drivers[name]
        operation = driver.operations[driver.position]
        driver.position += 1
        if self.over or driver.failed:
            return None
        self._wanted = 0
        try:
            driver.perform(operation)
        except Exception as error:
            if _is_shortage(error):
                self.over = driver.fail(operation)
            else:
                driver.failed, self.over = True, driver.fatal
            return error
        finally:
            self._note_published()
        return None

    def run(self, schedule: Schedule) -> list[tuple[Violation, ...]]:
        """Run a schedule; return the violations after each step.

        Raises IsolationError for a step that is not its request's next operation.
        """
        found = []
        for step in schedule.steps:
            driver = self.drivers.get(step.request)
            if driver is None:
                raise IsolationError(
                    f"The scenario {self.scenario.name!r} has no request {step.request}. It has"
                    f" {', '.join(self.drivers)}."
                )
            if driver.over or driver.operations[driver.position] != step.operation:
                due = "nothing" if driver.over else driver.operations[driver.position]
                raise IsolationError(
                    f"{step} is not the next step of {step.request}, which is {due}."
                )
            found.append(self.step(step.request))
        return found

    def _note_published(self) -> None:
        pending = [self.cache.root] if hasattr(self.cache, "root") else []
        while pending:
            for node in pending.pop().children.values():
                self._published.add(node.page.index)
                pending.append(node)

    def _raised(
        self, driver: RequestDriver, error: Exception, before: CacheView
    ) -> tuple[Violation, ...]:
        if not _is_shortage(error):
            step = f"{driver.name}.{driver.operations[driver.position - 1]}"
            text = f"{step} raises {type(error).__name__}."
            return (Violation("operation-raises", text, driver.name),)
        room = before.free_or_evictable(driver.name)
        if self._wanted > room:
            return ()
        text = (
            f"{driver.name} gets no pages: it needs {self._wanted}, and {room} are free or"
            " evictable."
        )
        return (Violation("allocation-refused", text, driver.name),)

    def _check_at_end(self) -> tuple[Violation, ...]:
        """Evict everything when all requests have ended, and check what is free."""
        cache = self.cache
        evict = getattr(cache, "evict_pages", None) or getattr(cache, "_evict_pages", None)
        if evict is not None:
            try:
                evict(self.page_count)
            except Exception as error:
                text = f"Evicting all cached pages raises {type(error).__name__}."
                return (Violation("not-quiescent", text),)
        free = {page.index for page in self.pool.available_pages}
        missing = set(range(self.page_count)).difference(free, self.view.withheld, self._reserved)
        if not missing:
            return ()
        pages = tuple(sorted(missing))
        text = (
            "All requests have ended and everything was evicted, but"
            f" {numbered('page', pages)} did not become free."
        )
        return (Violation("not-quiescent", text, pages=pages),)

    # -- looking ---------------------------------------------------------------------------

    def look(self) -> None:
        """Read the cache, to compare it after the next operation."""
        trie, detached = self._tries()
        active = {n: d for n, d in self.drivers.items() if d.position and not d.over}
        self._trie, self._detached = trie, detached
        self.view = CacheView(
            state=CacheState(
                page_count=self.page_count,
                free=[page.index for page in self.pool.available_pages],
                holdings={n: d.holds() for n, d in self.drivers.items()},
                nodes=tuple(trie.nodes),
                duplicates=[p.index for p in getattr(self.cache, "_duplicated_pages", ())],
                misfiled=trie.misfiled,
                misplaced=trie.misplaced,
            ),
            block_tables={n: d.block_table() for n, d in active.items()},
            tokens={n: d.tokens for n, d in self.drivers.items()},
            written=self._written,
            content=self._content,
            references={n: d.references() for n, d in self.drivers.items()},
            looked_up=frozenset(page for d in active.values() for page in d.looked_up()),
            detached=detached.nodes,
            withheld=frozenset(self.engine.service.withheld),
            reserved=self._reserved,
            missing_page=self._missing_page,
            padding_given=self._padding_given,
        )

    def _tries(self) -> tuple[Trie, Trie]:
        """Return the trie, and the detached nodes with further numbers."""
        detached = Trie([], [], [], [])
        root = getattr(self.cache, "root", None)
        if root is None:
            return detached, detached
        numbers: dict[int, int] = {}
        leaves = self.cache.leaves
        trie = read_trie(root, leaves, lambda node: numbers.setdefault(id(node), len(numbers)))
        known = {id(node) for node in trie.live}
        strays = [*sorted(leaves, key=lambda leaf: leaf.access_time)]
        strays += [node for driver in self.drivers.values() for node in driver.nodes()]
        for node in strays:
            if id(node) not in known:
                known.add(id(node))
                number = numbers.setdefault(id(node), len(numbers))
                detached.live.append(node)
                detached.nodes.append(
                    Node(number, None, node.page.index, node.tokens, node.ref_count.count,
                         node in leaves)
                )  # fmt: skip
        return trie, detached

    # -- comparing states ------------------------------------------------------------------

    def fingerprint(self) -> tuple[Any, ...]:
        """Return a value that is equal for two states only if their continuations are the same.

        Pages except page 0 are interchangeable, and nodes are identified by their paths, so both
        are numbered in the order of visit. Only the order of the nodes' ages matters.
        """
        view, state = self.view, self.view.state
        names: dict[int, int] = {0: 0}

        def pages(numbers: Iterable[int]) -> tuple[int, ...]:
            return tuple([names.setdefault(number, len(names)) for number in numbers])

        paths = view.paths
        ordered = sorted(
            zip(self._trie.nodes, self._trie.live, strict=True), key=lambda n: paths[n[0].node]
        )
        ordered += zip(self._detached.nodes, self._detached.live, strict=True)
        numbers = {id(live): number for number, (_, live) in enumerate(ordered)}

        def nodes(known: Iterable[Any]) -> tuple[int | None, ...]:
            return tuple([numbers.get(id(node)) for node in known])

        trie = tuple(
            [
                (paths.get(node.node, node.tokens), node.ref_count, node.leaf,
                 len(live.children or ()), live.tokens, pages([live.page.index]),
                 nodes([live.parent]))
                for node, live in ordered
            ]
        )  # fmt: skip
        ages = sorted(range(len(ordered)), key=lambda i: ordered[i][1].access_time)
        drivers = tuple([driver.state(pages, nodes) for driver in self.drivers.values()])
        allocated = [page.index for page in getattr(self.cache, "_allocated_pages", ())]
        lists = (
            pages(state.free), pages(state.duplicates), pages(allocated), pages(self._reserved),
            pages(sorted(view.withheld)),
        )  # fmt: skip
        # The content of a free page has no effect, because it is discarded at allocation.
        idle = set(state.free).difference(
            view.cached, *view.block_tables.values(), *state.holdings.values()
        )
        contents = [(names[page], tuple(slots)) for page, slots in enumerate(self._content)
                    if page in names and page not in idle]  # fmt: skip
        published = sorted(names.setdefault(page, len(names)) for page in self._published)
        return (
            trie, tuple(ages), drivers, lists, tuple(sorted(contents)), tuple(published), self.over,
            self._padding_given, tuple(self._missing_page),
            tuple([driver.position for driver in self.drivers.values()]),
        )  # fmt: skip


def _is_shortage(error: Exception) -> bool:
    return type(error).__name__ == "CacheAllocationFailure"
