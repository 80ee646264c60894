"""Traverses the nodes of a prefix cache's trie by number, also of a broken trie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from analysis.snapshots.state import Node


class Step(NamedTuple):
    """A node visited in a traversal."""

    node: Node
    depth: int
    parent: int | None
    """The node visited before it; None at a start."""


class Trie:
    """Nodes of a trie with their children.

    A node without a known parent is a root. Nodes in a cycle have no root and are visited last.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.node: node for node in nodes}
        self.children: dict[int, list[int]] = {}
        self.roots: list[int] = []
        for node in self.nodes.values():
            if node.parent in self.nodes and node.parent != node.node:
                assert node.parent is not None
                self.children.setdefault(node.parent, []).append(node.node)
            else:
                self.roots.append(node.node)

    def walk(self, start: int | None = None) -> Iterator[Step]:
        """Yield every node once, parents before children, siblings in order.

        With `start`, yield only that node and its descendants.
        """
        seen: set[int] = set()
        for first in [*self.roots, *self.nodes] if start is None else [start]:
            waiting: list[tuple[int, int, int | None]] = [(first, 0, None)]
            while waiting:
                number, depth, parent = waiting.pop()
                if number in seen:
                    continue
                seen.add(number)
                yield Step(self.nodes[number], depth, parent)
                below = reversed(self.children.get(number, ()))
                waiting += [(child, depth + 1, number) for child in below]

    def reachable(self) -> Iterator[Node]:
        """Yield the nodes that are below a true root, parents first."""
        for root in self.roots:
            if self.nodes[root].parent is None:
                yield from (step.node for step in self.walk(root))
