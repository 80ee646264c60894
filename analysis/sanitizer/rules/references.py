"""References to the nodes of the trie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.world import ENDED_WELL, Event, World
from analysis.snapshots.snapshot import Node, Snapshot

_NONE: Mapping[int, int] = {}


class References(Rule):
    """A node has as many references as there are allocations that hold it."""

    name = "ref-count-mismatch"
    sentence = (
        "References to a node equal the live allocations that hold it, and are never negative."
    )

    def after_reference(self, world: World, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        node, request = event.node, event.request_id
        count, before = event.ref_count or 0, event.ref_before or 0
        if count < 0:
            yield self._finding(world, event, "negative", f"has {count} references")
        if request is None:
            yield self._finding(
                world, event, "no-owner", f"goes from {before} to {count} references"
            )
            return
        holders = [r for r, held in world.balance.items() if r != request and held[node] > 0]
        taken = sum(world.balance[r][node] for r in holders)
        if holders and count < before and count < taken:
            yield self._finding(
                world,
                event,
                "over-released",
                f"is left with {count} references by {request}, while"
                f" {' and '.join(map(str, holders))} took {taken}",
                suffers=str(holders[0]),
                other=request,
            )
        elif (
            count < before
            # One that was under way when the watching began took references that nobody saw.
            and request in world.last_of
            and sum(world.balance.get(request, _NONE).values()) < 0
        ):
            yield self._finding(
                world, event, "over-released", f"loses a reference that {request} never took"
            )

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.outcome not in (*ENDED_WELL, "empty"):
            return
        for node, count in world.balance.pop(event.request_id, {}).items():
            if count <= 0 or (node not in world.nodes and node not in world.leaves):
                continue  # one unlinked is told of elsewhere
            yield self._finding(
                world,
                event,
                "not-released",
                f"keeps {count} reference{'s' if count > 1 else ''} of {event.request_id}, which"
                " has ended",
                node=node,
            )

    def _finding(
        self,
        world: World,
        event: Event,
        cause: str,
        what: str,
        *,
        node: int | None = None,
        suffers: str | None = None,
        other: str | None = None,
    ) -> Finding:
        number = event.node if node is None else node
        assert number is not None
        place = world.nodes.get(number)
        page = None if place is None else place.page
        where = "The root" if number == 0 else f"Node {number} (page {page})"
        return Finding(
            cause=cause,
            message=f"{where} {what}.",
            request_id=suffers or event.request_id,
            other_request_id=other,
            page=page,
        )


class Unreferenced(Rule):
    """Only what nobody refers to is evicted."""

    name = "evicted-while-referenced"
    sentence = "A node that is referred to is never taken out of the trie."

    def on_unlink(self, world: World, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        count = world.references.get(event.node, 0)
        if count <= 0:
            return
        holders = [r for r, held in world.balance.items() if r is not None and held[event.node] > 0]
        yield Finding(
            cause="referenced-node",
            message=f"Node {event.node} (page {event.pages[0]}) is taken out of the trie with"
            f" {count} references" + (f", of {' and '.join(holders)}." if holders else "."),
            request_id=holders[0] if holders else event.request_id,
            other_request_id=event.request_id if holders else None,
            page=event.pages[0],
        )


class Protected(Rule):
    """What a request computes with cannot be evicted from under it.

    Only a node without references and without children is evicted, so a reference to a node below
    protects it, too. Asked at every invocation whose requests' pages or references changed since
    the last, and by the engine's own counts at every snapshot.
    """

    name = "unprotected-page"
    sentence = "A cached page that a live request uses has a reference to its node, or below it."

    def __init__(self) -> None:
        self._sure: set[str] = set()
        """Requests that were looked at since anything changed."""
        self._told: dict[str, set[int]] = {}
        """Nodes that were told of, by the request under way."""

    def _change(self, world: World, event: Event) -> Iterator[Finding]:
        self._sure.clear()
        return iter(())

    on_reference = on_create = on_unlink = on_node_overwritten = _change
    on_pages_held = on_pages_dropped = _change

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        if not world.node_at:
            return
        for row, sequence in passage.known_rows():
            request = sequence.request_id
            if request in self._sure:
                continue
            self._sure.add(request)
            cached = [n for p in passage.pages_of(row) if (n := world.node_at.get(p)) is not None]
            if cached and not _referred(world.nodes, world.references, cached[-1]):
                yield from self._one(world.nodes[cached[-1]], request, passage.invocation.phase)

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.request_id not in world.given_up:
            self._told.pop(event.request_id or "", None)
        return iter(())

    def after_late(self, world: World, event: Event) -> Iterator[Finding]:
        self._told.pop(event.request_id or "", None)
        return iter(())

    def on_unprotected(self, world: World, event: Event) -> Iterator[Finding]:
        node = world.nodes.get(-1 if event.node is None else event.node)
        if node is not None and event.request_id is not None:
            yield from self._one(node, event.request_id, "invocation")

    def look(self, world: World, snapshot: Snapshot) -> Iterator[Finding]:
        """Check the engine's own counts for what those who have yet to finish hold."""
        nodes = {node.node: node for node in snapshot.nodes}
        counts = {node.node: node.ref_count for node in snapshot.nodes}
        for request, pages in snapshot.state.holdings.items():
            if request not in world.under_way:
                continue
            for page in sorted(pages):
                node = nodes.get(snapshot.node_of_page.get(page, -1))
                if node is not None and not _referred(nodes, counts, node.node):
                    yield from self._one(node, request, None)

    def _one(self, node: Node, request: str, phase: str | None) -> Iterator[Finding]:
        told = self._told.setdefault(request, set())
        if node.node in told:
            return
        told.add(node.node)
        doing = f"A {phase} of {request} uses" if phase else f"{request} is under way and holds"
        yield Finding(
            cause="no-reference",
            message=f"{doing} cached page {node.page}, and neither its node {node.node} nor one"
            " below it has a reference.",
            request_id=request,
            page=node.page,
        )


def _referred(nodes: Mapping[int, Node], counts: Mapping[int, int], node: int) -> bool:
    """Tell whether a node or one below it has a reference."""
    if counts.get(node, 0) > 0:
        return True
    for number, count in counts.items():
        steps, above = 0, nodes.get(number) if count > 0 else None
        while above is not None and above.parent is not None and steps < len(nodes):
            if above.parent == node:
                return True
            steps, above = steps + 1, nodes.get(above.parent)
    return False
