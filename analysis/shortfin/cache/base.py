"""What reading, hooking the trie and hooking invocations have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from analysis.shortfin.cache.nodes import NodeNumbers
from analysis.shortfin.port import CacheObserver, CacheOwner, CacheProbe


class ProbeBase(CacheProbe):
    """The live objects that a probe reads, and how it reports events."""

    def __init__(self, service: CacheOwner, numbers: NodeNumbers) -> None:
        self.service, self.native = service, service.native
        self.cache = service.cache
        self.pool = self.cache.page_pool
        self.numbers = numbers
        self.observer: CacheObserver | None = None
        self._thread = threading.local()
        self._emitted: dict[str, set[tuple[Any, ...]]] = {}
        """Events that are emitted once a request."""
        if (root := getattr(self.cache, "root", None)) is not None:
            numbers.of(root)

    def number_of(self, node: Any) -> int:
        return self.numbers.of(node)

    def counted_node(self, ref_count: Any) -> Any:
        return self.numbers.counted_by(ref_count)

    def emit(self, kind: str, **fields: Any) -> None:
        """Report an event to the observer."""
        assert self.observer is not None
        self.observer.event(kind, **fields)

    def free_count(self) -> int:
        """Return how many pages are free, those that a treatment withholds among them."""
        return len(self.pool.available_pages) + len(self.service.withheld)

    def first_time(self, request_id: str, what: tuple[Any, ...]) -> bool:
        """Return whether this is the first time that something is emitted of a request."""
        emitted = self._emitted.setdefault(request_id, set())
        new = what not in emitted
        emitted.add(what)
        return new

    def forget(self, request_id: str) -> None:
        self._emitted.pop(request_id, None)


def indices(pages: Iterable[Any]) -> list[int]:
    """Return the indices of the engine's pages."""
    return [page.index for page in pages]
