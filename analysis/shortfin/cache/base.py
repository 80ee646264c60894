"""Base classes of probes: access to the live cache, and reporting of events."""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any

from analysis.shortfin.cache import part_of
from analysis.shortfin.cache.nodes import NodeNumbers
from analysis.shortfin.locks import WatchedLock
from analysis.shortfin.port import CacheObserver
from analysis.shortfin.releases import installed_release
from analysis.snapshots.snapshot import CacheState


class LiveCache:
    """Access to the cache of a native service, with or without a server."""

    native: Any
    """The release's own service object, live and unmodified."""

    def __init__(self) -> None:
        self.withheld: set[int] = set()
        """Pages that a treatment removes from the pool; they count as free."""
        self.quarantined: deque[tuple[Any, bytes]] = deque()
        """Freed pages that a treatment withholds, each with a digest of its bytes."""
        self.treatment_locks: list[WatchedLock] = []
        """Locks that treatments hold during operations of the cache."""
        self._numbers = NodeNumbers()

    @property
    def cache(self) -> Any:
        """The release's live cache."""
        return self.native.page_cache

    def component(self, name: str) -> Any:
        """Return a module in the release's package of its service."""
        package = type(self.native).__module__.rpartition(".")[0]
        return importlib.import_module(f"{package}.{name}")

    def probe(self) -> Any:
        """Return a `BaseProbe` of the cache; all probes use the same node numbers."""
        return part_of(installed_release() or "", "probe").PROBE(self, self._numbers)


class ProbeBase(ABC):
    """The live objects of a probe, and the reporting of events."""

    def __init__(self, service: LiveCache, numbers: NodeNumbers) -> None:
        self.service, self.native = service, service.native
        self.cache = service.cache
        self.pool = self.cache.page_pool
        self.numbers = numbers
        self.observer: CacheObserver | None = None
        self._thread = threading.local()
        self._emitted: dict[str, set[tuple[Any, ...]]] = {}
        """Events already emitted, of those emitted once a request."""
        if (root := getattr(self.cache, "root", None)) is not None:
            numbers.of(root)

    @abstractmethod
    def read(self) -> CacheState:
        """Return the current state of the cache."""

    def number_of(self, node: Any) -> int:
        """Return the unique number of a node of the trie; 0 is the root."""
        return self.numbers.of(node)

    def counted_node(self, ref_count: Any) -> Any:
        """Return the node of a reference count; None if it belongs to another engine."""
        return self.numbers.counted_by(ref_count)

    def emit(self, kind: str, **fields: Any) -> None:
        """Report an event to the observer."""
        assert self.observer is not None
        self.observer.event(kind, **fields)

    def free_count(self) -> int:
        """Return the number of free pages, including those that a treatment withholds."""
        return len(self.pool.available_pages) + len(self.service.withheld)

    def first_time(self, request_id: str, what: tuple[Any, ...]) -> bool:
        """Return whether this event was not yet emitted for a request."""
        emitted = self._emitted.setdefault(request_id, set())
        new = what not in emitted
        emitted.add(what)
        return new

    def forget(self, request_id: str) -> None:
        """Delete the state of an ended request."""
        self._emitted.pop(request_id, None)


def indices(pages: Iterable[Any]) -> list[int]:
    """Return the indices of the engine's pages."""
    return [page.index for page in pages]
