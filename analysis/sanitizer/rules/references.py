"""Rules about reference counts of trie nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analysis.core.wording import counted
from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule, each
from analysis.sanitizer.rules.trie import node_label, page_of
from analysis.sanitizer.state import SERVED, EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event
from analysis.snapshots.snapshot import Node, Snapshot

_NONE: Mapping[int, int] = {}


class RefCountMismatch(Rule):
    name = "ref-count-mismatch"
    sentence = "A node's reference count is the number of live allocations that hold it."
    causes = {
        "not-released": "The node can never be evicted, and the cache fills up with unused pages.",
        **each(
            "negative no-owner over-released",
            "The node may be evicted while a request still reads its page.",
        ),
    }

    def after_reference(self, state: EngineState, event: Event) -> Iterator[Finding]:
        node, request = event.node, event.request_id
        assert node is not None
        count, before = event.ref_count or 0, event.ref_before or 0
        if count < 0:
            yield self._finding(state, node, "negative", request, f"has {count} references")
        if request is None:
            what = f"goes from {before} to {counted(count, 'reference')}"
            yield self._finding(state, node, "no-owner", None, f"{what} without a request")
            return
        holders = [r for r, held in state.balance.items() if r != request and held[node] > 0]
        taken = sum(state.balance[r][node] for r in holders)
        if holders and count < before and count < taken:
            what = (
                f"has only {counted(count, 'reference')} after {request} released it, but"
                f" {' and '.join(map(str, holders))} took {taken}"
            )
            holder = str(holders[0])
            yield self._finding(state, node, "over-released", holder, what, other=request)
        elif (
            count < before
            # References taken before the recording are unknown.
            and request in state.last_of
            and sum(state.balance.get(request, _NONE).values()) < 0
        ):
            what = f"loses a reference: {request} released one that it never took"
            yield self._finding(state, node, "over-released", request, what)

    def after_done(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if event.outcome not in SERVED:
            return
        for node, count in state.balance.pop(event.request_id, {}).items():
            if count > 0 and (node in state.nodes or node in state.leaves):
                has = f"still has {counted(count, 'reference')}"
                what = f"{has} of {event.request_id}, which has ended"
                yield self._finding(state, node, "not-released", event.request_id, what)

    def _finding(
        self, state: EngineState, node: int, cause: str, request: str | None, what: str,
        other: str | None = None,
    ) -> Finding:  # fmt: skip
        page = page_of(state, node)
        return Finding(cause, f"{node_label(node, page)} {what}.", request, other, page=page)


class EvictedWhileReferenced(Rule):
    name = "evicted-while-referenced"
    sentence = "A referenced node is never removed from the trie."
    causes = {"referenced-node": "A page returns to the pool while a request still reads it."}

    def on_unlink(self, state: EngineState, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        count = state.references.get(event.node, 0)
        if count <= 0:
            return
        holders = state.holders_of_node(event.node)
        of = f" of {' and '.join(holders)}" if holders else ""
        what = (
            f"Node {event.node} (page {event.pages[0]}) is removed from the trie, but has"
            f" {counted(count, 'reference')}{of}."
        )
        request, other = event.request_id, None
        if holders:
            request, other = holders[0], event.request_id
        yield Finding("referenced-node", what, request, other, page=event.pages[0])


class UnprotectedPage(Rule):
    """Checks that the cached pages of a live request cannot be evicted.

    Only nodes without references and children are evicted, so a reference to a descendant also
    protects a node. Checked at an invocation after any change of pages or references, and at every
    snapshot with the engine's own counts.
    """

    name = "unprotected-page"
    sentence = "If a live request uses a cached page, its node or a descendant has a reference."
    causes = {
        "no-reference": "The page may be evicted and allocated to another request while it is still"
        " read."
    }

    def __init__(self) -> None:
        super().__init__()
        self._checked: set[str] = set()
        """Requests checked since the last change."""
        self._reported: dict[str, set[int]] = {}
        """Reported nodes of each request under way."""

    def _change(self, state: EngineState, event: Event) -> None:
        self._checked.clear()

    on_reference = on_create = on_unlink = on_node_overwritten = _change
    on_pages_held = on_pages_dropped = _change

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        if not state.node_at:
            return
        for row, sequence in step.known_rows():
            request = sequence.request_id
            if request in self._checked:
                continue
            self._checked.add(request)
            cached = [n for p in step.pages_of(row) if (n := state.node_at.get(p)) is not None]
            if cached and not _referenced(state.nodes, state.references, cached[-1]):
                yield from self._one(state.nodes[cached[-1]], request, step.label(row))

    def after_done(self, state: EngineState, event: Event) -> None:
        if event.request_id not in state.given_up:  # after `late` it is not
            self._reported.pop(event.request, None)

    after_late = after_done

    def on_unprotected(self, state: EngineState, event: Event) -> Iterator[Finding]:
        node = state.nodes.get(-1 if event.node is None else event.node)
        if node is not None and event.request_id is not None:
            yield from self._one(node, event.request, f"invocation of {event.request_id}")

    def at_snapshot(self, state: EngineState, snapshot: Snapshot) -> Iterator[Finding]:
        nodes = {node.node: node for node in snapshot.nodes}
        counts = {node.node: node.ref_count for node in snapshot.nodes}
        for request, pages in snapshot.state.holdings.items():
            if request not in state.under_way:
                continue
            for page in sorted(pages):
                node = nodes.get(snapshot.node_of_page.get(page, -1))
                if node is not None and not _referenced(nodes, counts, node.node):
                    yield from self._one(node, request, request)

    def _one(self, node: Node, request: str, label: str) -> Iterator[Finding]:
        reported = self._reported.setdefault(request, set())
        if node.node in reported:
            return
        reported.add(node.node)
        what = (
            f"{label}: uses cached page {node.page}, but neither its node {node.node} nor a"
            " descendant has a reference."
        )
        yield Finding("no-reference", what, request, page=node.page)


def _referenced(nodes: Mapping[int, Node], counts: Mapping[int, int], node: int) -> bool:
    """Return whether a node or a descendant has a reference."""
    if counts.get(node, 0) > 0:
        return True
    for number, count in counts.items():
        steps, above = 0, nodes.get(number) if count > 0 else None
        while above is not None and above.parent is not None and steps < len(nodes):
            if above.parent == node:
                return True
            steps, above = steps + 1, nodes.get(above.parent)
    return False
