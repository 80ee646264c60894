"""The state of the KV cache as plain data: pages, holders, the trie, and conflicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STATES = ("free", "live", "cached", "leaked")
"""A page in two states counts as the first of them."""
FREE, LIVE, CACHED, LEAKED = range(4)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the trie: one page of tokens."""

    node: int
    """Number of the node in this engine; the root is 0."""
    parent: int | None
    page: int | None
    """Page of the node; None for the root."""
    tokens: tuple[int, ...]
    ref_count: int
    leaf: bool
    """Whether it is in the engine's set of leaves."""


class Conflict(NamedTuple):
    """A page in two states at once, or in an impossible one."""

    code: str
    """A key of `CONFLICTS`."""
    page: int
    node: int | None = None
    times: int | None = None
    request_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        holders = " and ".join(self.request_ids)
        return CONFLICTS[self.code].format(
            page=self.page, node=self.node, times=self.times, holders=holders
        )


CONFLICTS = {
    "free-twice": "Page {page} is {times} times in the free list.",
    "free-and-held": "Page {page} is free and held by {holders}.",
    "free-and-cached": "Page {page} is free and in node {node}.",
    "in-several-nodes": "Page {page} is in {times} nodes of the trie.",
    "no-such-page": "Page {page} does not exist.",
    "wrong-key": "Node {node} (page {page}) is filed under another key.",
}
"""Sentences of conflicts by code."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """Content of a page on all devices: statistics of its elements, and a hash of its bytes."""

    mean: float
    maximum: float
    """Largest magnitude; both values ignore NaN."""
    nan_count: int
    digest: str


@dataclass(frozen=True)
class CacheState:
    """The state read from a live cache, in the engine's terms."""

    page_count: int
    free: Sequence[int]
    """The pool's free list in its order, with repeated pages."""
    holdings: Mapping[str, Sequence[int]]
    """Pages held by each request."""
    nodes: tuple[Node, ...] = ()
    """Nodes of the trie, root first, parents before children; () without a trie."""
    duplicates: Sequence[int] = ()
    """Duplicate pages that the cache will free."""
    misfiled: Sequence[int] = ()
    """Nodes that their parent has under wrong tokens."""
    misplaced: Sequence[Sequence[int]] = ()
    """Nodes with a wrong parent pointer: (node, node it points to or -1, actual parent)."""
    allocated: Sequence[int] | None = None
    """The cache's list of allocated pages, in its order; None if it has none."""


@dataclass(frozen=True, eq=False)
class SnapshotBase:
    """The cache at one moment, with derived values.

    Every page is free (in the pool's list), live (held by a request), cached (held only by the
    prefix cache) or leaked (none of these).
    """

    state: CacheState
    moment: str = "asked"
    """Moment of the snapshot: before or after a request, at a failure, or asked for."""
    request_id: str | None = None
    seq: int | None = None
    """Sequence number of its event; None without a recording."""
    t_s: float | None = None
    """Seconds since the engine started."""
    consistent: bool = True
    """Whether no operation of the cache ran during the snapshot."""
    contents: Mapping[int, PageContent] = field(default_factory=dict)
    recorded_conflicts: tuple[Conflict, ...] = ()
    """Conflicts of a stored snapshot, whose row has not all data to derive them."""

    @cached_property
    def states(self) -> npt.NDArray[np.uint8]:
        """Index in STATES of every page's state, of shape [page_count]."""
        states = np.full(self.state.page_count, LEAKED, dtype=np.uint8)
        # The state with the highest priority is written last.
        _put(states, [n.page for n in self.state.nodes if n.page is not None], CACHED)
        _put(states, self.state.duplicates, CACHED)
        for pages in self.state.holdings.values():
            _put(states, pages, LIVE)
        _put(states, self.state.free, FREE)
        return states

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of pages in each state; they add up to `page_count`."""
        numbers = np.bincount(self.states, minlength=len(STATES))
        return {name: int(number) for name, number in zip(STATES, numbers, strict=True)}

    @property
    def page_count(self) -> int:
        """Number of pages in the pool."""
        return self.state.page_count

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes of the trie, parents before children; () without prefix sharing."""
        return self.state.nodes

    @cached_property
    def holders(self) -> dict[int, tuple[str, ...]]:
        """Requests that hold each live page."""
        held: dict[int, tuple[str, ...]] = {}
        for request_id, pages in self.state.holdings.items():
            alone = (request_id,)
            for page in dict.fromkeys(pages):
                held[page] = held[page] + alone if page in held else alone
        return {page: held[page] for page in sorted(held)}

    @cached_property
    def node_of_page(self) -> dict[int, int]:
        """Node of the trie that holds each page."""
        return {n.page: n.node for n in self.state.nodes if n.page is not None}

    @property
    def conflict_pages(self) -> tuple[int, ...]:
        """Pages of `conflicts` in ascending order, including pages that do not exist."""
        return tuple(sorted({conflict.page for conflict in self.conflicts}))

    @cached_property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Pages in two states at once; none in a healthy engine."""
        if self.recorded_conflicts:
            return self.recorded_conflicts
        found = []
        free = np.fromiter(self.state.free, dtype=np.int64)
        exist = (free >= 0) & (free < self.page_count)
        times = np.bincount(free[exist], minlength=self.page_count)
        claimed = self.holders.keys() | self.node_of_page.keys()
        pages = np.fromiter(claimed, dtype=np.int64, count=len(claimed))
        known = (pages >= 0) & (pages < self.page_count)
        strange = set(pages[~known].tolist())
        both = set(pages[known][times[pages[known]] > 0].tolist())
        several = set(np.flatnonzero(times > 1).tolist())
        in_trie = Counter(n.page for n in self.state.nodes if n.page is not None)
        for page in sorted(several | both):
            if times[page] > 1:
                found.append(Conflict("free-twice", page, times=int(times[page])))
            if page in self.holders:
                found.append(Conflict("free-and-held", page, request_ids=self.holders[page]))
            if page in in_trie:
                found.append(Conflict("free-and-cached", page, self.node_of_page[page]))
        for page, number in in_trie.items():
            if number > 1:
                found.append(Conflict("in-several-nodes", page, times=number))
        for page in sorted(strange | set(free[~exist].tolist())):
            found.append(Conflict("no-such-page", page))
        pages_of = {n.node: n.page for n in self.state.nodes}
        for node in self.state.misfiled:
            if (place := pages_of.get(node)) is not None:
                found.append(Conflict("wrong-key", place, node))
        return tuple(found)

    def pages(self, state: str) -> list[int]:
        """Return the pages in a state, in ascending order."""
        return [int(page) for page in np.flatnonzero(self.states == STATES.index(state))]


def _put(states: npt.NDArray[np.uint8], pages: Iterable[int], state: int) -> None:
    indices = np.fromiter(pages, dtype=np.int64)
    states[indices[(indices >= 0) & (indices < len(states))]] = state
