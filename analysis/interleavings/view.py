"""The state of the cache and its requests between two operations, for the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.snapshots.snapshot import CacheState, Node

_prefixes: dict[tuple[int, ...], int] = {}


def prefix_number(tokens: Sequence[int]) -> int:
    """Return the number of a prefix, the same at every call."""
    return _prefixes.setdefault(tuple(tokens), len(_prefixes))


@dataclass(frozen=True)
class CacheView:
    """Owners of pages, references, and contents of pages."""

    state: CacheState
    """State of the cache: `holdings` are pages that requests must release, `duplicates` those
    pending to be freed."""
    block_tables: Mapping[str, Sequence[int]]
    """Pages that invocations of the active requests may still read or write."""
    tokens: Mapping[str, Sequence[int]]
    """The tokens of each request."""
    written: Mapping[str, int]
    """Number of its tokens that an invocation has written."""
    content: Sequence[Sequence[int | None]]
    """Number of the prefix in each page and slot; None if not written."""
    references: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Least and greatest correct number of references of each request."""
    looked_up: frozenset[int] = frozenset()
    """Pages that requests have found in the trie but do not hold yet."""
    detached: Sequence[Node] = ()
    """Nodes outside the trie that are in the set of leaves or referenced by a request."""
    withheld: frozenset[int] = frozenset()
    """Pages that a treatment removes from the pool."""
    reserved: Sequence[int] = ()
    """Pages held by inactive requests."""
    missing_page: Mapping[str, int] = field(default_factory=dict)
    """A position that each request wrote without a page."""
    padding_given: bool = False
    """Whether page 0 was allocated to a request."""

    @cached_property
    def paths(self) -> dict[int, tuple[int, ...]]:
        """Tokens from the root to the end of each node."""
        paths: dict[int, tuple[int, ...]] = {}
        for node in self.state.nodes:
            paths[node.node] = () if node.parent is None else (*paths[node.parent], *node.tokens)
        return paths

    @cached_property
    def children(self) -> Counter[int | None]:
        """Number of children of each node."""
        return Counter([node.parent for node in self.state.nodes])

    @cached_property
    def referenced(self) -> set[int]:
        """Nodes protected from eviction by a reference to them or a descendant."""
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
        """Nodes of the trie by page (the first, if two nodes have the same page)."""
        return {node.page: node for node in reversed(self.state.nodes) if node.page is not None}

    def wrong_references(self) -> tuple[int, int, int] | None:
        """Return the number of references and its correct bounds; None if it is correct."""
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
        """Return how many pages a correct cache could allocate to a request, besides its prefix."""
        tokens, nodes = tuple(self.tokens[name]), self.state.nodes
        evictable = set(self.cached)
        evictable -= {
            n.page for n in nodes if self.paths[n.node] == tokens[: len(self.paths[n.node])]
        }
        if self.wrong_references() is None:  # surplus references protect nothing
            evictable -= {n.page for n in nodes if n.node in self.referenced}
        for pages in (*self.block_tables.values(), *self.state.holdings.values()):
            evictable.difference_update(pages)
        return len(set(self.state.free)) + len(evictable - self.looked_up)
