"""The cache and its requests between two steps, as the rules look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_prefixes: dict[tuple[int, ...], int] = {}


def prefix_number(tokens: Sequence[int]) -> int:
    """Return a number that stands for a prefix, the same one every time."""
    return _prefixes.setdefault(tuple(tokens), len(_prefixes))


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node of the live trie."""

    node: Any
    number: int
    """In the order in which nodes are come upon, the root first."""
    parent: NodeView | None
    page: int | None
    """None for the root."""
    path: tuple[int, ...]
    """Tokens from the root to its end."""
    length: int
    """How many of them are its own."""
    refs: int
    leaf: bool
    """Whether it is in the cache's set of leaves."""
    children: int
    sound: bool
    """Whether it is found under its own tokens, and knows its parent."""

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return "the root" if self.page is None else f"the node of page {self.page}"


@dataclass(frozen=True)
class Picture:
    """Where every page is, who refers to what, and what pages hold."""

    page_count: int
    free: list[int]
    kept: set[int]
    """Pages that a treatment keeps out of the pool."""
    elsewhere: list[int]
    nodes: list[NodeView]
    unreachable: list[NodeView]
    """Nodes that someone knows, and that are not in the trie."""
    aside: list[int]
    """Pages that the cache has set aside to be freed."""
    uses: dict[str, list[int]]
    """Block tables of the requests under way."""
    found: set[int]
    """Pages that requests have found in the trie, and do not hold yet."""
    holds: dict[str, set[int]]
    """Pages that requests have to give back."""
    references: dict[str, tuple[int, int]]
    tokens: dict[str, list[int]]
    """The tokens of each request."""
    flown: dict[str, int]
    """How many of them were flown."""
    content: list[list[int | None]]
    outside_room: dict[str, int]
    padding_given: bool
    has_trie: bool

    @cached_property
    def referred(self) -> set[int]:
        """Nodes of the trie, by number, that a reference to them or below them keeps."""
        kept: set[int] = set()
        for node in self.nodes:
            at: NodeView | None = node if node.refs > 0 else None
            while at is not None:
                kept.add(at.number)
                at = at.parent
        return kept

    def references_owed(self) -> tuple[int, int, int] | None:
        """Return how many references there are, and may be at least and most; None if that fits."""
        count = sum(node.refs for node in (*self.nodes, *self.unreachable))
        low = sum(least for least, _ in self.references.values())
        high = sum(most for _, most in self.references.values())
        return None if low <= count <= high else (count, low, high)

    @cached_property
    def cached(self) -> dict[int, NodeView]:
        """Nodes by their page; where two have one, the first."""
        found: dict[int, NodeView] = {}
        for node in self.nodes:
            if node.page is not None:
                found.setdefault(node.page, node)
        return found

    def users(self) -> dict[int, list[str]]:
        """Return the requests that use each page."""
        found: dict[int, list[str]] = {}
        for name, table in self.uses.items():
            for page in dict.fromkeys(table):
                found.setdefault(page, []).append(name)
        return found

    def free_or_evictable(self, name: str) -> int:
        """Return how many pages a correct cache could give to a request, beside its own prefix."""
        held = {page for table in self.uses.values() for page in table}.union(*self.holds.values())
        tokens = tuple(self.tokens[name])
        others = {n.page for n in self.nodes if n.page is not None}
        others -= {n.page for n in self.nodes if n.path == tokens[: len(n.path)]}
        if self.references_owed() is None:  # a reference too many keeps nothing by right
            others -= {n.page for n in self.nodes if n.number in self.referred}
        return len(set(self.free)) + len(others - held - self.found)
