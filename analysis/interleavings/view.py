"""The cache and its requests between two operations, as the rules see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.snapshots.snapshot import CacheState, Node

_prefixes: dict[tuple[int, ...], int] = {}


def prefix_number(tokens: Sequence[int]) -> int:
    """Return a number that stands for a prefix, the same one every time."""
    return _prefixes.setdefault(tuple(tokens), len(_prefixes))


@dataclass(frozen=True)
class CacheView:
    """Where every page is, who refers to what, and what pages hold."""

    state: CacheState
    """Its `holdings` are the pages that requests have to give back, its `duplicates` those that are
    pending to be freed."""
    block_tables: Mapping[str, Sequence[int]]
    """Pages that invocations of the active requests may still read or write."""
    tokens: Mapping[str, Sequence[int]]
    """The tokens of each request."""
    written: Mapping[str, int]
    """How many of them an invocation has written."""
    content: Sequence[Sequence[int | None]]
    """By page and slot, the number of the prefix that the token there ends; None: not written."""
    references: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By request, the least and the greatest number of references to the trie that are correct."""
    looked_up: frozenset[int] = frozenset()
    """Pages that requests have found in the trie, and do not hold yet."""
    detached: Sequence[Node] = ()
    """Nodes outside the trie that are in its set of leaves or that a request refers to."""
    withheld: frozenset[int] = frozenset()
    """Pages that a treatment keeps out of the pool."""
    reserved: Sequence[int] = ()
    """Pages that requests hold which do nothing meanwhile."""
    missing_page: Mapping[str, int] = field(default_factory=dict)
    """By request, a position that it wrote without a page for it."""
    padding_given: bool = False
    """Whether page 0 was given to a request."""

    @cached_property
    def paths(self) -> dict[int, tuple[int, ...]]:
        """By node of the trie, the tokens from the root to its end."""
        paths: dict[int, tuple[int, ...]] = {}
        for node in self.state.nodes:
            paths[node.node] = () if node.parent is None else (*paths[node.parent], *node.tokens)
        return paths

    @cached_property
    def children(self) -> Counter[int | None]:
        """By node of the trie, how many children it has."""
        return Counter([node.parent for node in self.state.nodes])

    @cached_property
    def referenced(self) -> set[int]:
        """Nodes of the trie that a reference to them or below them keeps from eviction."""
        parents = {node.node: node.parent for node in self.state.nodes}
        kept: set[int] = set()
        for node in self.state.nodes:
            at = node.node if node.ref_count > 0 else None
            while at is not None and at not in kept:
                kept.add(at)
                at = parents[at]
        return kept

    @cached_property
    def cached(self) -> dict[int, Node]:
        """Nodes of the trie by their page; where two have one, the first."""
        return {node.page: node for node in reversed(self.state.nodes) if node.page is not None}

    def wrong_references(self) -> tuple[int, int, int] | None:
        """Return how many references there are, and may be at least and most; None if that fits."""
        count = sum(node.ref_count for node in (*self.state.nodes, *self.detached))
        low = sum(least for least, _ in self.references.values())
        high = sum(most for _, most in self.references.values())
        return None if low <= count <= high else (count, low, high)

    def users(self) -> dict[int, list[str]]:
        """Return the requests that use each page."""
        found: dict[int, list[str]] = {}
        for name, table in self.block_tables.items():
            for page in dict.fromkeys(table):
                found.setdefault(page, []).append(name)
        return found

    def free_or_evictable(self, name: str) -> int:
        """Return how many pages a correct cache could give a request, beside its own prefix."""
        tokens, nodes = tuple(self.tokens[name]), self.state.nodes
        evictable = set(self.cached)
        evictable -= {
            n.page for n in nodes if self.paths[n.node] == tokens[: len(self.paths[n.node])]
        }
        if self.wrong_references() is None:  # a reference too many protects nothing
            evictable -= {n.page for n in nodes if n.node in self.referenced}
        for pages in (*self.block_tables.values(), *self.state.holdings.values()):
            evictable.difference_update(pages)
        return len(set(self.state.free)) + len(evictable - self.looked_up)
