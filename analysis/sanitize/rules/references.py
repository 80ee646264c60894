"""References to the nodes of the trie."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.sanitize.findings import Finding
from analysis.sanitize.rules.base import Rule
from analysis.sanitize.world import ENDED_WELL, Event, World


class References(Rule):
    """A node has as many references as there are allocations that hold it."""

    name = "references"
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
                world, event, "changed for nobody", f"goes from {before} to {count} references"
            )
            return
        holders = [r for r, held in world.balance.items() if r != request and held[node] > 0]
        taken = sum(world.balance[r][node] for r in holders)
        if holders and count < before and count < taken:
            yield self._finding(
                world,
                event,
                "given back too often",
                f"is left with {count} references by {request}, while"
                f" {' and '.join(map(str, holders))} took {taken}",
                suffers=str(holders[0]),
                other=request,
            )
        elif count < before and sum(world.balance[request].values()) < 0:
            yield self._finding(
                world, event, "given back too often", f"loses a reference that {request} never took"
            )

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.detail not in (*ENDED_WELL, "empty"):
            return
        for node, count in world.balance.pop(event.request_id, {}).items():
            if count <= 0 or (node not in world.nodes and node not in world.leaves):
                continue  # one unlinked is told of elsewhere
            yield self._finding(
                world,
                event,
                "not given back",
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

    name = "eviction"
    sentence = "A node that is referred to is never taken out of the trie."

    def on_unlink(self, world: World, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        count = world.references.get(event.node, 0)
        if count <= 0:
            return
        holders = [r for r, held in world.balance.items() if r is not None and held[event.node] > 0]
        yield Finding(
            cause="referenced node",
            message=f"Node {event.node} (page {event.pages[0]}) is taken out of the trie with"
            f" {count} references" + (f", of {' and '.join(holders)}." if holders else "."),
            request_id=holders[0] if holders else event.request_id,
            other_request_id=event.request_id if holders else None,
            page=event.pages[0],
        )
