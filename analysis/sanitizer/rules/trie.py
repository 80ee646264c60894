"""Rules about the trie: its structure, and the content of its pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.core.wording import counted
from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule, each
from analysis.sanitizer.shadow import NOTHING, PADDING, UNKNOWN, prefix_hashes
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.trace import Event
from analysis.snapshots.snapshot import Snapshot


class CachedPrefixMismatch(Rule):
    name = "cached-prefix-mismatch"
    sentence = "A cached page holds the prefix that it is published or served for."
    causes = {
        "padding": "Padding is written to page 0, but the page is in the trie.",
        **each("uninitialized other-prefix", "A request that finds the page reads other tokens."),
    }

    def after_create(self, state: EngineState, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        path = state.path(event.node)
        count = len(state.nodes[event.node].tokens)
        if count <= len(path):
            what = f"published as node {event.node}"
            yield from _compare(state, event, path, len(path) - count, what)

    def on_match(self, state: EngineState, event: Event) -> Iterator[Finding]:
        sequence = state.under_way.get(event.request)
        if sequence is None or sequence.prompt is None or sequence.unknown:
            return
        # A publication looks up the prompt and the answer.
        answer = sequence.answer if event.operation == "publish" else []
        known = [*sequence.prompt, *answer][: len(event.pages) * state.stride]
        wanted = [token for token in known if token is not None]
        if len(wanted) == len(known):
            yield from _compare(state, event, wanted, 0, f"served to {event.request_id}")


def _compare(
    state: EngineState, event: Event, tokens: Sequence[int], first: int, what: str
) -> Iterator[Finding]:
    """Compare the content of pages with the prefix they must hold, from position `first` on."""
    if not len(tokens):
        return
    due = prefix_hashes(np.array(tokens, dtype=np.int64))[first:]
    stride, shadow = state.stride, state.shadow
    if not all(0 <= page < state.page_count for page in event.pages):
        return  # `block-table-mismatch` reports such a page when it is used
    slots = (np.array(event.pages)[:, None] * stride + np.arange(stride)).ravel()[: len(due)]
    held = shadow.content[slots]
    wrong = np.flatnonzero((held != due[: len(slots)]) & (held != UNKNOWN))
    if not len(wrong):
        return
    slot = int(slots[wrong[0]])
    other = state.name(int(shadow.writer[slot]))
    cause, holds = "other-prefix", f"holds position {int(shadow.position[slot])} of {other}"
    if shadow.content[slot] == NOTHING:
        cause, holds = "uninitialized", "was never written"
    elif shadow.content[slot] == PADDING:
        cause, holds = "padding", "holds padding"
    page, offset = divmod(slot, stride)
    what = (
        f"Page {page} is {what}, but lacks position {first + int(wrong[0])} of the prefix: slot"
        f" {offset} {holds}."
    )
    other = other if other != event.request_id else None
    yield Finding(cause, what, event.request_id, other, page=page, slot=offset)


class OrphanedNode(Rule):
    name = "orphaned-node"
    sentence = "A lookup of a node's tokens finds the node until it is evicted."
    causes = {
        "overwritten": "Two requests published the same prefix. Lookups no longer reach the earlier"
        " node, and its page may never be evicted."
    }

    def on_node_overwritten(self, state: EngineState, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        node = state.nodes.get(event.node)
        count = state.references.get(event.node, 0)
        holders = state.holders_of_node(event.node)
        leaf = " and is in the set of leaves" if event.node in state.leaves else ""
        what = (
            f"Node {event.node} (page {event.pages[0]}) was replaced in the trie by a new node with"
            f" the same tokens; it still has {counted(count, 'reference')}{leaf}."
        )
        other = next((h for h in holders if h != event.request_id), None)
        page = event.pages[0] if node is None else node.page
        yield Finding("overwritten", what, event.request_id, other, page=page)


class ParentMismatch(Rule):
    """Compares parent and child pointers of the trie.

    Eviction follows parent pointers, lookups follow children. A node is checked when a lookup
    passes it; all nodes are checked at every snapshot.
    """

    name = "parent-mismatch"
    sentence = "A node's parent pointer names the node that has it as a child, under its tokens."
    causes = each(
        "wrong-parent wrong-child",
        "Eviction uses the parent pointer: it fails or removes the wrong node.",
    )
    limits = {"": "Between two snapshots, a pointer is checked only when a lookup passes it."}

    def after_detached(self, state: EngineState, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        known = state.nodes.get(event.node)
        right = known is not None and known.parent == event.parent
        parent = "the root" if event.parent == 0 else f"node {event.parent}"
        what = f"points to {parent} as its parent, but is not its child"
        what = "points to no parent" if event.parent is None else f"{what} under its tokens"
        yield from self._one(state, event.node, right, what, event.request_id)

    def at_snapshot(self, state: EngineState, snapshot: Snapshot) -> Iterator[Finding]:
        for node, pointer, above in snapshot.state.misplaced:
            known = state.nodes.get(node)
            right = known is not None and known.parent == pointer
            parent = "no parent" if pointer < 0 else f"node {pointer} as its parent"
            what = f"points to {parent}, but is a child of node {above}"
            yield from self._one(state, node, right, what, None)

    def after_unlink(self, state: EngineState, event: Event) -> None:
        self.reported -= {(node, cause) for node, cause in self.reported if node == event.node}

    def _one(
        self, state: EngineState, node: int, right: bool, what: str, request: str | None
    ) -> Iterator[Finding]:
        cause = "wrong-child" if right else "wrong-parent"
        if not self.is_new(node, cause):
            return
        page = page_of(state, node)
        holders = sorted(state.holders.get(-1 if page is None else page, ()))
        request = request or (holders[0] if holders else None)
        yield Finding(cause, f"{node_label(node, page)} {what}.", request, page=page)


class LeafSetMismatch(Rule):
    name = "leaf-set-mismatch"
    sentence = "The set of leaves has exactly the nodes of the trie without children."
    causes = {
        "inner-node": "Eviction may remove this node before its children; then lookups no longer"
        " reach them.",
        "unlinked-node": "Eviction chooses from this set, and may remove a node that is gone.",
        "missing-leaf": "Eviction chooses from this set, and never finds this node.",
    }

    def __init__(self) -> None:
        super().__init__()
        self._touched: dict[str | None, set[int]] = {}
        """Nodes changed by the current operation, by thread."""

    def on_create(self, state: EngineState, event: Event) -> None:
        self._touch(event, event.parent)

    def on_unlink(self, state: EngineState, event: Event) -> None:
        node = state.nodes.get(-1 if event.node is None else event.node)
        self._touch(event, None if node is None else node.parent)

    on_node_overwritten = on_leaf_added = on_leaf_removed = on_unlink

    def _touch(self, event: Event, parent: int | None) -> None:
        touched = self._touched.setdefault(event.thread, set())
        touched.update(node for node in (event.node, parent) if node is not None)

    def after_operation(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for number in sorted(self._touched.pop(event.thread, ())):
            yield from self._one(state, event, number)

    after_failed = after_operation

    def after_leaf_added(self, state: EngineState, event: Event) -> Iterator[Finding]:
        # Outside an operation, no later event ends the change.
        if event.operation is None:
            yield from self.after_operation(state, event)

    after_leaf_removed = after_unlink = after_leaf_added

    def _one(self, state: EngineState, event: Event, number: int) -> Iterator[Finding]:
        node = state.nodes.get(number)
        is_leaf, children = number in state.leaves, state.children[number]
        if node is None and is_leaf:
            cause, what = "unlinked-node", "is in the set of leaves, but not in the trie"
        elif node is None or node.parent is None or is_leaf == (children <= 0):
            return
        elif is_leaf:
            has = counted(children, "child", "children")
            cause, what = "inner-node", f"is in the set of leaves, but has {has}"
        else:
            cause, what = "missing-leaf", "has no children, but is not in the set of leaves"
        page = page_of(state, number)
        yield Finding(cause, f"{node_label(number, page)} {what}.", event.request_id, page=page)


def page_of(state: EngineState, node: int) -> int | None:
    """Return the page of a node, None without one."""
    return None if (known := state.nodes.get(node)) is None else known.page


def node_label(node: int, page: int | None) -> str:
    """Return a node and its page in words."""
    if node == 0:
        return "The root"
    return f"Node {node}" if page is None else f"Node {node} (page {page})"
