"""The cache and its requests between two steps, as the rules look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


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
    """The tokens of each request that were flown, if it has a block table."""
    content: list[list[int | None]]
    prefix: Callable[[Iterable[int]], int]
    outside_room: dict[str, int]
    padding_given: bool
    has_trie: bool

    @property
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

    def free_or_evictable(self) -> int:
        """Return how many pages a correct cache could give to somebody."""
        held = {page for table in self.uses.values() for page in table}.union(*self.holds.values())
        return len(set(self.free)) + len(set(self.cached) - held - self.found)
