"""The state of the KV cache as plain data: pages, holders, the trie, and conflicts among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STATES = ("free", "live", "cached", "leaked")
"""A page that could be in two states counts as the first of them."""
FREE, LIVE, CACHED, LEAKED = range(4)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the trie: one page of tokens."""

    node: int
    """Its number in this engine; the root is 0."""
    parent: int | None
    page: int | None
    """None for the root, which has no page of its own."""
    tokens: tuple[int, ...]
    ref_count: int
    leaf: bool
    """Whether the engine has it in its set of leaves, rightly or not."""


class Conflict(NamedTuple):
    """A page that is in two places at once, or where it cannot be."""

    code: str
    """A key of `CONFLICTS`."""
    page: int
    node: int | None = None
    times: int | None = None
    request_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        who = " and ".join(self.request_ids)
        return CONFLICTS[self.code].format(
            page=self.page, node=self.node, times=self.times, who=who
        )


CONFLICTS = {
    "free-twice": "Page {page} is {times} times in the free list.",
    "free-and-held": "Page {page} is free and held by {who}.",
    "free-and-cached": "Page {page} is free and in node {node}.",
    "in-several-nodes": "Page {page} is in {times} nodes of the trie.",
    "no-such-page": "Page {page} does not exist.",
    "wrong-key": "Node {node} (page {page}) is filed under another key.",
}
"""Codes of conflicts with their sentences."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """What a page holds, over all devices: statistics of its elements, and a hash of its bytes."""

    mean: float
    maximum: float
    """Largest magnitude; NaN elements are left out of both."""
    nan_count: int
    digest: str


@dataclass(frozen=True)
class CacheState:
    """What is read of a live cache, in the engine's own terms."""

    page_count: int
    free: Sequence[int]
    """The pool's free list, in its order; a page that is listed twice stays so."""
    holdings: Mapping[str, Sequence[int]]
    """Pages by the request that holds them."""
    nodes: tuple[Node, ...] = ()
    """The trie, parents before children, the root first; empty where there is none."""
    duplicates: Sequence[int] = ()
    """Pages that the cache set aside to be freed."""
    misfiled: Sequence[int] = ()
    """Nodes that their parent knows under other tokens than their own."""
    misplaced: Sequence[Sequence[int]] = ()
    """Nodes whose parent pointer is not the node that has them as a child: the node's number, that
    of the parent it points to (-1 for none), and that of the node that has it."""
    allocated: Sequence[int] | None = None
    """The cache's list of the pages that it gave out, in its order; None where it keeps none."""


@dataclass(frozen=True, eq=False)
class SnapshotBase:
    """The cache at one moment: what a snapshot holds, and what follows from it.

    Every page is free (in the pool's list), live (held by a request), cached (held by the prefix
    cache alone) or leaked (none of these).
    """

    state: CacheState
    moment: str = "asked"
    """before, after (a request), failure, or asked for."""
    request_id: str | None = None
    seq: int | None = None
    """Its place among the recorded events, None if nothing was recorded."""
    t_s: float | None = None
    """Seconds since the engine started."""
    consistent: bool = True
    """Whether it was taken while no operation of the cache was under way."""
    contents: Mapping[int, PageContent] = field(default_factory=dict)
    recorded_conflicts: tuple[Conflict, ...] = ()
    """Conflicts of a row of the table, which lacks some of the data that they were found in."""

    @cached_property
    def states(self) -> npt.NDArray[np.uint8]:
        """State of every page as its place in STATES, of shape [page_count]."""
        states = np.full(self.state.page_count, LEAKED, dtype=np.uint8)
        # The strongest claim is written last.
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
        """Pages in the pool altogether."""
        return self.state.page_count

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The trie, parents before children; empty where the engine shares no prefixes."""
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
        """Pages of `conflicts`, also such as do not exist; in ascending order."""
        return tuple(sorted({conflict.page for conflict in self.conflicts}))

    @cached_property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Pages that are in two places at once; none in a healthy engine."""
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
        """Return the pages that are in a state, in ascending order."""
        return [int(page) for page in np.flatnonzero(self.states == STATES.index(state))]


def _put(states: npt.NDArray[np.uint8], pages: Iterable[int], state: int) -> None:
    indices = np.fromiter(pages, dtype=np.int64)
    states[indices[(indices >= 0) & (indices < len(states))]] = state
