"""Read a live trie of the release as plain data."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from analysis.snapshots.snapshot import Node


class Trie(NamedTuple):
    """The nodes of a trie, parents before children, the root first."""

    nodes: list[Node]
    live: list[Any]
    """The release's own node of each of them."""
    misfiled: list[int]
    """Nodes under a key that differs from their own tokens."""
    misplaced: list[tuple[int, int, int]]
    """Nodes with another parent pointer than the node above: its number, that of the parent that it
    points to (-1: none), and that of the node above."""


def read_trie(root: Any, leaves: Collection[Any], number_of: Callable[[Any], int]) -> Trie:
    """Return the trie below a root; `number_of` gives each live node its number. Hot path."""
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
                continue  # under two nodes, or under one of its own
            seen.add(id(child))
            pending.append((child, number))
            if key != child.tokens:
                trie.misfiled.append(number_of(child))
    return trie
