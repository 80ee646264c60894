"""Reads the live trie as plain data, and reports its changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from analysis.shortfin.cache.base import ProbeBase, indices
from analysis.shortfin.hooks import Hooks
from analysis.snapshots.snapshot import Node

_SETTLE_S = 0.001


class Trie(NamedTuple):
    """The nodes of a trie, parents before children, the root first."""

    nodes: list[Node]
    live: list[Any]
    """The release's node object of each node."""
    misfiled: list[int]
    """Nodes under a key that differs from their tokens."""
    misplaced: list[tuple[int, int, int]]
    """Nodes with a wrong parent pointer: (node, node it points to or -1, actual parent)."""


def read_trie(root: Any, leaves: Collection[Any], number_of: Callable[[Any], int]) -> Trie:
    """Return the trie of a root; `number_of` returns the number of a live node. Hot path."""
    trie = Trie([], [], [], [])
    seen = {id(root)}
    pending: list[tuple[Any, int | None]] = [(root, None)]
    while pending:
        node, parent = pending.pop()
        number = number_of(node)
        trie.live.append(node)
        trie.nodes.append(
            Node(
                node=number,
                parent=parent,
                page=None if node is root else node.page.index,
                tokens=tuple(int(token) for token in node.tokens),
                ref_count=node.ref_count.count,
                leaf=node in leaves,
            )
        )
        for key, child in list((node.children or {}).items()):
            if child.parent is not node:
                above = -1 if child.parent is None else number_of(child.parent)
                trie.misplaced.append((number_of(child), above, number))
            if id(child) in seen:
                continue  # in two places, or in a cycle
            seen.add(id(child))
            pending.append((child, number))
            if key != child.tokens:
                trie.misfiled.append(number_of(child))
    return trie


class ObservedSet(set[Any]):
    """The engine's set of leaves, which reports added and removed nodes."""

    def __init__(self, content: Iterable[Any], emit: Callable[[str, Any], None]) -> None:
        super().__init__(content)
        self._emit = emit

    def add(self, element: Any) -> None:
        """Add a leaf."""
        new = element not in self
        super().add(element)
        if new:
            self._emit("leaf_added", element)

    def remove(self, element: Any) -> None:
        """Remove a leaf; KeyError if it is missing."""
        super().remove(element)
        self._emit("leaf_removed", element)

    def discard(self, element: Any) -> None:
        """Remove a leaf if present."""
        if element in self:
            self.remove(element)


class TrieProbe(ProbeBase):
    """Reports changes of the trie."""

    def hook_trie(self, hooks: Hooks) -> None:
        node_class = type(self.cache.root)
        count_class = type(self.cache.root.ref_count)
        numbers = self.numbers

        def place_of(parent: Any, tokens: Any, page: Any) -> Any:
            return parent.children.get(tokens)

        def created(before: Any, node: Any, error: Any, parent: Any, tokens: Any, _: Any) -> None:
            if node is None or node is before:
                return
            if before is not None:
                self.emit("node_overwritten", node=numbers.of(before), pages=[before.page.index])
            self.emit(
                "create",
                node=numbers.of(node),
                parent=numbers.of(parent),
                pages=[node.page.index],
                tokens=tuple(tokens),
            )

        def unlinking(node: Any) -> Any:
            parent = node.parent
            return parent, None if parent is None else parent.children.get(node.tokens)

        def unlinked(state: Any, result: Any, error: Any, node: Any) -> None:
            parent, in_place = state
            if parent is None or error is not None:
                return
            self.emit(
                "unlink",
                node=numbers.of(node),
                parent=numbers.of(parent),
                pages=[node.page.index],
            )
            if in_place is not node and in_place is not None:
                self.emit(
                    "node_overwritten", node=numbers.of(in_place), pages=[in_place.page.index]
                )

        def counted(state: Any, result: Any, error: Any, count: Any) -> None:
            node = numbers.counted_by(count)
            if node is not None and error is None:
                change = 1 if state == "increment" else -1
                self.emit(
                    "reference",
                    node=numbers.of(node),
                    ref_before=result - change,
                    ref_count=result,
                )

        def ours(node: Any, *rest: Any) -> bool:
            return numbers.knows(node)

        hooks.around(node_class, "create_child", applies=ours, before=place_of, after=created)
        hooks.around(node_class, "unlink", applies=ours, before=unlinking, after=unlinked)
        for name in ("increment", "decrement"):
            hooks.around(
                count_class,
                name,
                applies=lambda count: numbers.counted_by(count) is not None,
                before=lambda count, name=name: name,
                after=counted,
            )
        self.read()  # numbers all existing nodes
        self._hook_leaves(hooks)

    def _hook_leaves(self, hooks: Hooks) -> None:
        def report(kind: str, node: Any) -> None:
            try:
                self.emit(kind, node=self.number_of(node))
            except Exception as error:
                hooks.observer.fault(error)

        original = self.cache.leaves
        observed = ObservedSet(original, report)
        self._swap_leaves(original, observed)

        def back() -> None:
            plain = set(observed)
            original.clear()
            original.update(plain)
            self._swap_leaves(observed, original)

        hooks.also(back)

    def _swap_leaves(self, old: set[Any], new: set[Any]) -> None:
        """Replace a set of leaves by another one, including its latest changes."""
        was = set(old)
        self.cache.leaves = new
        time.sleep(_SETTLE_S)
        now = set(old)
        set.update(new, now - was)
        set.difference_update(new, was - now)

    def hook_match(self, hooks: Hooks, name: str) -> None:
        stride = self.cache.tokens_per_page

        def matched(state: Any, result: Any, error: Any, tokens: Sequence[int]) -> None:
            if result is None:
                return
            node, pages = result
            self._emit_detached(node)
            hit = min(len(pages) * stride, len(tokens))
            self.emit(
                "match",
                node=self.number_of(node),
                pages=indices(pages),
                tokens_hit=hit,
                tokens_missed=len(tokens) - hit,
            )

        hooks.around(self.cache, name, after=matched)

    def _emit_detached(self, node: Any) -> None:
        """Report the first node on the path to the root that is not a child of its parent."""
        root, steps = self.cache.root, 0
        while node is not root:
            parent, steps = node.parent, steps + 1
            there = None if parent is None else (parent.children or {}).get(node.tokens)
            if there is not node or steps > len(self.pool.attn_page_entries):
                above = None if parent is None else self.number_of(parent)
                number, page = self.number_of(node), node.page.index
                self.emit("detached", node=number, parent=above, pages=[page])
                return
            node = parent

    def emit_unprotected(self, request_id: str, node: Any) -> None:
        """Report once that the node that a request continues has no reference."""
        if node is None or node.ref_count.count > 0 or node is self.cache.root:
            return
        number = self.number_of(node)
        if self.first_time(request_id, ("unprotected", number)):
            page = node.page.index
            self.emit("unprotected", request_id=request_id, node=number, pages=[page])

    def hook_evict(self, hooks: Hooks, name: str) -> None:
        def evicting(count: int) -> list[int]:
            pages: list[int] = []  # filled when the pages are freed
            self._thread.evicted = pages
            return pages

        def evicted(pages: list[int], count: int | None, error: Any, wanted: int) -> None:
            self._thread.evicted = None
            if pages:
                self.emit(
                    "evict",
                    pages=pages,
                    free_pages=self.free_count(),
                    wanted=wanted,
                )

        hooks.around(self.cache, name, before=evicting, after=evicted)
