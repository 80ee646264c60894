"""The base class of probes: reading and observing a live cache of any dialect."""

from __future__ import annotations

import gc
import hashlib
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from analysis.core.errors import EngineError
from analysis.model import elements
from analysis.shortfin.cache.base import LiveCache, indices
from analysis.shortfin.cache.invocations import InvocationProbe
from analysis.shortfin.cache.nodes import NodeNumbers
from analysis.shortfin.cache.trie import TrieProbe, read_trie
from analysis.shortfin.hooks import Hooks
from analysis.shortfin.locks import Locks, WatchedLock
from analysis.shortfin.port import CacheObserver
from analysis.snapshots.snapshot import CacheState, PageContent

CURRENT_REQUEST: ContextVar[str | None] = ContextVar("CURRENT_REQUEST", default=None)
"""The request of the engine's current task."""
_LONG_S = 0.5
"""Seconds after which a held lock is reported; most are held for microseconds."""


class BaseProbe(TrieProbe, InvocationProbe):
    """Reads the cache of one live engine and, once attached, reports its operations.

    The engine's own objects are read, never copies. Only the objects that belong to pending
    requests are noted when they are made, or found among all objects of the process.
    """

    def __init__(self, service: LiveCache, numbers: NodeNumbers) -> None:
        super().__init__(service, numbers)
        self._hooks: Hooks | None = None
        self._locks: list[WatchedLock] = []

    @abstractmethod
    def holdings(self) -> dict[str, list[int]]:
        """Return the pages that each pending request holds, each page once."""

    @abstractmethod
    def last_node(self, request_id: str) -> Any:
        """Return the node of the trie that a pending request refers to, None without one."""

    @abstractmethod
    def stock(self, request_id: str) -> list[int]:
        """Return pages that a request has allocated and not used yet."""

    @abstractmethod
    def find_requests(self) -> None:
        """Search for pending requests that began before the probe was attached."""

    @abstractmethod
    def note_request(self, part: Any) -> None:
        """Register an object of a request that the probe cannot observe itself."""

    def read(self) -> CacheState:
        root = getattr(self.cache, "root", None)
        trie = None
        if root is not None:
            trie = read_trie(root, getattr(self.cache, "leaves", ()), self.number_of)
        listed = getattr(self.cache, "_allocated_pages", None)
        return CacheState(
            page_count=len(self.pool.attn_page_entries),
            free=[
                *(page.index for page in list(self.pool.available_pages)),
                *self.service.withheld,
            ],
            holdings={request: pages for request, pages in self.holdings().items() if pages},
            nodes=tuple(trie.nodes) if trie is not None else (),
            duplicates=tuple(p.index for p in getattr(self.cache, "_duplicated_pages", ())),
            misfiled=trie.misfiled if trie is not None else (),
            misplaced=trie.misplaced if trie is not None else (),
            allocated=None if listed is None else tuple(indices(list(listed))),
        )

    def contents(self, pages: Sequence[int]) -> dict[int, PageContent]:
        """Return the contents of pages on all devices.

        An invocation may write to them at the same time. Raises EngineError if they cannot be read.
        """
        elements.check(self.dtype)
        try:
            return {page: _content(self.elements(page)) for page in pages}
        except Exception as error:
            raise EngineError(f"The page table of this device cannot be read: {error}") from error

    @property
    def page_table_bytes(self) -> int:
        """Bytes of all page tables of the pool on all devices."""
        return sum(
            int(table.dtype.compute_dense_nd_size(list(table.shape)))
            for table in self.pool.page_tables
        )

    def attach(self, observer: CacheObserver) -> None:
        """Add hooks to the live objects. Raises EngineError if they are already hooked."""
        if self._hooks is not None:
            raise EngineError("This engine is already observed. End that observation first.")
        self.observer = observer
        self._hooks = hooks = Hooks(observer)
        try:
            self.find_requests()
            self._hook_locks(hooks)
            self._hook_pool(hooks)
            if hasattr(self.cache, "root"):
                self.hook_trie(hooks)
            self.hook(hooks)
            self.hook_invocations(hooks)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Remove the hooks, and restore every object."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.restore()

    @abstractmethod
    def hook(self, hooks: Hooks) -> None:
        """Add the hooks of the dialect."""

    def hook_requests(self, hooks: Hooks, task: type, begin: Callable[[Any], str | None]) -> None:
        """Track the start and the end of requests, each of which has its own task.

        `begin(process)` returns the id of the request; None for one of another engine.
        """

        def started(process: Any) -> str | None:
            if (request := begin(process)) is not None:
                CURRENT_REQUEST.set(request)
            return request

        def ended(request: str | None, process: Any) -> None:
            if request is not None:
                hooks.observer.begin(None, request)
                try:
                    self.forget(request)
                    hooks.observer.holds(request, ())
                finally:
                    hooks.observer.end(None)

        hooks.around_task(task, "run", before=started, after=ended)

    def emit_duplicates(self, request_id: str, pages: Sequence[int]) -> None:
        """Report once which pages are repeated in a request's list."""
        if len(set(pages)) == len(pages):
            return
        twice = sorted({page for page in pages if pages.count(page) > 1})
        if self.first_time(request_id, ("twice", *twice)):
            self.emit("duplicate_page", request_id=request_id, pages=twice)

    def _hook_locks(self, hooks: Hooks) -> None:
        """Wrap the cache's locks, to record their holders."""
        hooks.observer.locks = locks = Locks()
        for owner, attribute, name in (
            (self.pool, "_lock", "pool"),
            (self.cache, "_lock", "cache"),
            (self.cache, "_ref_count_lock", "references"),
        ):
            lock = vars(owner).get(attribute)
            if lock is not None:
                self._locks.append(WatchedLock(lock, name, locks))
                hooks.attribute(owner, attribute, self._locks[-1])
        # A treatment may already have been applied.
        for lock in self.service.treatment_locks:
            hooks.attribute(lock, "locks", locks)

    def kept_locks(self) -> list[dict[str, Any]]:
        """Return the locks that a thread has held for long, with the thread."""
        now, kept = time.monotonic(), []
        for lock in (*self._locks, *self.service.treatment_locks):
            if (holder := lock.holder) is not None and now - holder[2] > _LONG_S:
                seconds = round(now - holder[2], 1)
                thread = f"{holder[1]} {holder[0]}"
                kept.append({"lock": lock.name, "thread": thread, "seconds": seconds})
        return kept

    def _hook_pool(self, hooks: Hooks) -> None:
        def acquired(state: Any, pages: Any, error: Any, count: int) -> None:
            if pages:
                self.emit("acquire", pages=indices(pages), free_pages=self.free_count())
            elif pages is None and error is None:
                # Pages that a treatment withholds were not available.
                self.emit(
                    "alloc_failed",
                    free_pages=len(self.pool.available_pages),
                    wanted=count,
                )

        def freeing(pages: Sequence[Any]) -> Any:
            # Before they are free, so that this event precedes the next allocation.
            freed_pages = list(dict.fromkeys(indices(pages)))
            if (evicted := getattr(self._thread, "evicted", None)) is not None:
                evicted.extend(freed_pages)
            return hooks.observer.reserve(), freed_pages

        def freed(state: Any, result: Any, error: Any, pages: Any) -> None:
            place, freed_pages = state
            if freed_pages:
                self.emit("free", place=place, pages=freed_pages, free_pages=self.free_count())
            else:
                hooks.observer.unused(place)

        hooks.around(self.pool, "acquire_free_pages", after=acquired)
        hooks.around(self.pool, "free_pages", before=freeing, after=freed)


def objects_of(*classes: type) -> list[Any]:
    """Return every live object of these classes in the process."""
    return [thing for thing in gc.get_objects() if type(thing) in classes]


def _content(page: Any) -> PageContent:
    numbers = page.astype(np.float64)
    valid = numbers[~np.isnan(numbers)]
    return PageContent(
        mean=float(valid.mean()) if valid.size else float("nan"),
        maximum=float(np.abs(valid).max()) if valid.size else float("nan"),
        nan_count=int(numbers.size - valid.size),
        digest=hashlib.sha256(page.tobytes()).hexdigest()[:16],
    )
