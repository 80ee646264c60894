"""The shape of the trie, and what its nodes promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.shadow import NOTHING, PADDING, UNKNOWN, prefix_hashes
from analysis.sanitizer.world import Event, World
from analysis.snapshots.snapshot import Snapshot


class CachedPrefix(Rule):
    """A page in the trie holds what its node promises."""

    name = "cached-prefix-mismatch"
    sentence = (
        "A cached page holds the prefix that it is published for, and is served for no other."
    )

    def after_create(self, world: World, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        path = world.path(event.node)
        count = len(world.nodes[event.node].tokens)
        if count <= len(path):
            yield from _compare(
                world,
                event,
                path,
                event.pages,
                len(path) - count,
                f"published as node {event.node}",
            )

    def on_match(self, world: World, event: Event) -> Iterator[Finding]:
        sequence = world.under_way.get(event.request_id or "")
        if sequence is None or sequence.prompt is None or sequence.lost:
            return
        # A publication looks up what was flown, answer and all, and may go on with what it finds.
        answer = sequence.answer if event.operation == "publish" else []
        known = [*sequence.prompt, *answer][: len(event.pages) * world.stride]
        asked = [token for token in known if token is not None]
        if len(asked) == len(known):
            what = f"served to {event.request_id}"
            yield from _compare(world, event, asked, event.pages, 0, what)


def _compare(
    world: World, event: Event, tokens: Sequence[int], pages: Sequence[int], first: int, what: str
) -> Iterator[Finding]:
    """Compare pages with the prefix that they should hold from position `first` on."""
    if not len(tokens):
        return
    due = prefix_hashes(np.array(tokens, dtype=np.int64))[first:]
    stride, shadow = world.stride, world.shadow
    if not all(0 <= page < world.page_count for page in pages):
        return  # the rule of block tables tells of it when it is flown
    slots = (np.array(pages)[:, None] * stride + np.arange(stride)).ravel()[: len(due)]
    held = shadow.content[slots]
    wrong = np.flatnonzero((held != due[: len(slots)]) & (held != UNKNOWN))
    if not len(wrong):
        return
    slot = int(slots[wrong[0]])
    other = world.name(int(shadow.writer[slot]))
    content = shadow.content[slot]
    cause = {int(NOTHING): "uninitialized", int(PADDING): "padding"}.get(
        int(content), "other-prefix"
    )
    holds = {"uninitialized": "was never written", "padding": "holds padding"}.get(
        cause, f"holds position {int(shadow.position[slot])} of {other}"
    )
    yield Finding(
        cause=cause,
        message=f"Page {slot // stride} is {what}, whose position {first + int(wrong[0])} it has"
        f" not: slot {slot % stride} {holds}.",
        request_id=event.request_id,
        other_request_id=other if other != event.request_id else None,
        page=slot // stride,
        slot=slot % stride,
    )


class Reachable(Rule):
    """A node keeps its place until it is taken out."""

    name = "orphaned-node"
    sentence = "Every node of the trie is found under its own tokens until it is evicted."

    def on_node_overwritten(self, world: World, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        node = world.nodes.get(event.node)
        count = world.references.get(event.node, 0)
        holders = [r for r, held in world.balance.items() if r is not None and held[event.node] > 0]
        yield Finding(
            cause="overwritten",
            message=f"Node {event.node} (page {event.pages[0]}) loses its place in the trie to a"
            f" new one of the same tokens, with {count} references"
            f"{' and in the set of leaves' if event.node in world.leaves else ''}.",
            request_id=event.request_id,
            other_request_id=next((h for h in holders if h != event.request_id), None),
            page=event.pages[0] if node is None else node.page,
        )


class Parents(Rule):
    """Pointers up and down the trie agree.

    Eviction goes up by the parent pointer, a lookup down by the children: each node that a lookup
    passes is checked then, and all of them at every snapshot.
    """

    name = "parent-mismatch"
    sentence = "Every node's parent is the one node that has it as a child, under its own tokens."

    def __init__(self) -> None:
        self._told: set[tuple[int, str]] = set()

    def after_detached(self, world: World, event: Event) -> Iterator[Finding]:
        assert event.node is not None
        known = world.nodes.get(event.node)
        right = known is not None and known.parent == event.parent
        where = "the root" if event.parent == 0 else f"node {event.parent}"
        said = "points to no parent" if event.parent is None else f"points to {where} as its parent"
        said += ", which does not have it as a child under its tokens" * (event.parent is not None)
        yield from self._one(world, event.node, right, said, event.request_id)

    def look(self, world: World, snapshot: Snapshot) -> Iterator[Finding]:
        for node, pointer, above in snapshot.state.misplaced:
            known = world.nodes.get(node)
            right = known is not None and known.parent == pointer
            where = "no parent" if pointer < 0 else f"node {pointer} as its parent"
            said = f"points to {where}, and is a child of node {above}"
            yield from self._one(world, node, right, said, None)

    def after_unlink(self, world: World, event: Event) -> Iterator[Finding]:
        self._told -= {(told, cause) for told, cause in self._told if told == event.node}
        return iter(())

    def _one(
        self, world: World, node: int, right: bool, said: str, request: str | None
    ) -> Iterator[Finding]:
        cause = "wrong-child" if right else "wrong-parent"
        if (node, cause) in self._told:
            return
        self._told.add((node, cause))
        known = world.nodes.get(node)
        page = None if known is None else known.page
        holders = sorted(world.holders.get(-1 if page is None else page, ()))
        yield Finding(
            cause=cause,
            message=f"Node {node}{'' if page is None else f' (page {page})'} {said}.",
            request_id=request or (holders[0] if holders else None),
            page=page,
        )


class Leaves(Rule):
    """The engine's set of leaves is what eviction chooses from."""

    name = "leaf-set-mismatch"
    sentence = "The set of leaves has exactly the nodes of the trie that have no children."

    def __init__(self) -> None:
        self._touched: dict[str | None, set[int]] = {}
        """Nodes that the operation under way on each thread changed."""

    def _touch(self, event: Event, *nodes: int | None) -> Iterator[Finding]:
        touched = self._touched.setdefault(event.thread, set())
        touched.update(node for node in nodes if node is not None)
        return iter(())

    def on_create(self, world: World, event: Event) -> Iterator[Finding]:
        return self._touch(event, event.node, event.parent)

    def on_unlink(self, world: World, event: Event) -> Iterator[Finding]:
        node = world.nodes.get(-1 if event.node is None else event.node)
        return self._touch(event, event.node, None if node is None else node.parent)

    on_node_overwritten = on_leaf_added = on_leaf_removed = on_unlink

    def after_operation(self, world: World, event: Event) -> Iterator[Finding]:
        for number in sorted(self._touched.pop(event.thread, ())):
            yield from self._one(world, event, number)

    after_failed = after_operation

    def after_leaf_added(self, world: World, event: Event) -> Iterator[Finding]:
        # Outside of an operation nothing says later that it is over.
        if event.operation is None:
            yield from self.after_operation(world, event)

    after_leaf_removed = after_unlink = after_leaf_added

    def _one(self, world: World, event: Event, number: int) -> Iterator[Finding]:
        node = world.nodes.get(number)
        is_leaf, childless = number in world.leaves, world.children[number] <= 0
        if node is None and is_leaf:
            cause, what = "unlinked-node", "is in the set of leaves, and not in the trie"
        elif node is None or node.parent is None or is_leaf == childless:
            return
        elif is_leaf:
            count = world.children[number]
            what = f"is in the set of leaves, and has {count} child{'' if count == 1 else 'ren'}"
            cause = "inner-node"
        else:
            cause, what = "missing-leaf", "has no children, and is not in the set of leaves"
        page = None if node is None else node.page
        yield Finding(
            cause=cause,
            message=f"Node {number}{'' if page is None else f' (page {page})'} {what}.",
            request_id=event.request_id,
            page=page,
        )
