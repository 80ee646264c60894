"""Treatments of what pages hold when they are handed out, and after they were freed."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.core.errors import EngineError
from analysis.model.elements import encode
from analysis.recording.checksums import writing
from analysis.shortfin.treatment import Treatment, replace_attribute, take_pool_lock

if TYPE_CHECKING:
    from analysis.engine import Engine

_resting: dict[int, deque[tuple[Any, bytes]]] = {}
"""Pages held back and what they held, by the id of their pool."""
_PATTERNS = {"nan": float("nan"), "zero": 0.0}


def fill_page(pool: Any, page: int, value: float) -> None:
    """Fill a page with a number, over all devices."""
    for table in pool.page_tables:
        bits = encode(value, str(table.dtype))
        with table.view(page).map(write=True) as mapped:
            np.frombuffer(mapped, dtype=bits.dtype)[:] = bits


def _fill(pool: Any, page: int, value: float) -> None:
    """Fill a page on purpose, and let whoever watches its bytes know."""
    with writing(pool, page):
        fill_page(pool, page, value)


def page_digest(pool: Any, page: int) -> bytes:
    """Return a hash of a page's bytes, over all devices."""
    digest = hashlib.blake2b(digest_size=16)
    for table in pool.page_tables:
        with table.view(page).map(read=True) as mapped:
            digest.update(bytes(mapped))
    return digest.digest()


def resting_pages(pool: Any) -> list[int]:
    """Return the pages of a pool that quarantine holds back now."""
    return [page.index for page, _ in list(_resting.get(id(pool), ()))]


class ZeroPageTables(Treatment):
    """The page table begins with zeros instead of whatever the memory held."""

    name = "zero-page-tables"
    hypothesis = "Slots that were never written hold what some other program left there."
    change = "All free pages are filled with zeros once, when it is applied."
    upstream = "#738"
    acts_on = "contents"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        pool = _pool(engine)
        for page in list(pool.available_pages):
            _fill(pool, page.index, 0.0)


class ZeroOnAcquire(Treatment):
    """Pages come clean, whoever had them before."""

    name = "zero-on-acquire"
    hypothesis = "Rows meet what an earlier request left in a page that was handed on."
    change = "Every page is filled with zeros when it is taken from the pool."
    acts_on = "contents"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        pool = _pool(engine)
        acquire = pool.acquire_free_pages

        def acquired(count: int) -> Any:
            pages = acquire(count)
            for page in pages or ():
                _fill(pool, page.index, 0.0)
            return pages

        replace_attribute(undo, pool, "acquire_free_pages", acquired)


class PoisonFreedPages(Treatment):
    """What nobody should read is made to show, as SLUB poisons freed objects."""

    name = "poison-freed-pages"
    hypothesis = "Freed or fresh pages are read; a pattern in them shows in the answers."
    change = "Pages are filled with a pattern while they are free."
    takes = "nan, zero or a number"
    acts_on = "contents"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        word = parameter or "nan"
        try:
            self.value = _PATTERNS[word] if word in _PATTERNS else float(word)
        except ValueError:
            raise EngineError(
                f"Pages can be poisoned with {self.takes}, not with {word!r}."
            ) from None

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        pool, value = _pool(engine), self.value
        free = pool.free_pages

        def freed(pages: Sequence[Any]) -> Any:
            for page in pages:
                _fill(pool, page.index, value)
            return free(pages)

        for page in list(pool.available_pages):
            _fill(pool, page.index, value)
        replace_attribute(undo, pool, "free_pages", freed)


class Quarantine(Treatment):
    """Freed pages rest before they are handed out again, as AddressSanitizer's quarantine."""

    name = "quarantine"
    hypothesis = "Pages are written or read after they were freed, when somebody else has them."
    change = "The last freed pages are held back, and looked at when they come out."
    takes = "the number of pages held back"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        if parameter is not None and not (parameter.isdigit() and int(parameter)):
            raise EngineError(
                f"Quarantine holds back a whole number of pages from 1, not {parameter!r}."
            )
        self.size = int(parameter or 8)
        self.written: list[int] = []
        """Pages that were written after they had been freed."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        pool = _pool(engine)
        acquire, free = pool.acquire_free_pages, pool.free_pages
        resting = _resting[id(pool)] = deque()
        undo.callback(_resting.pop, id(pool), None)
        lock = threading.Lock()

        def come_out(count: int) -> None:
            out: list[tuple[Any, bytes]] = []
            with lock:
                while resting and len(out) < count:
                    out.append(resting.popleft())
            for page, digest in out:
                if page_digest(pool, page.index) != digest:
                    self.written.append(page.index)
                    _tell(engine, "written_after_free", [page.index])
            if out:
                free([page for page, _ in out])

        def freed(pages: Sequence[Any]) -> None:
            mine = [(page, page_digest(pool, page.index)) for page in _once(pages)]
            _tell(engine, "quarantined", [page.index for page, _ in mine])
            with lock:
                inside = {page.index for page, _ in resting}
                resting.extend(item for item in mine if item[0].index not in inside)
                over = len(resting) - self.size
            come_out(over)

        def acquired(count: int) -> Any:
            # What is held back must not make the pool seem empty.
            come_out(count - len(pool.available_pages))
            return acquire(count)

        replace_attribute(undo, pool, "free_pages", freed)
        replace_attribute(undo, pool, "acquire_free_pages", acquired)

        def all_out() -> None:
            if take_pool_lock(pool):  # otherwise a thread that hangs keeps it, for ever
                pool._lock.release()
                come_out(len(resting))

        undo.callback(all_out)


def _once(pages: Iterable[Any]) -> list[Any]:
    return list({page.index: page for page in pages}.values())


def _tell(engine: Engine, kind: str, pages: list[int]) -> None:
    watcher = None if engine.probe is None else engine.probe.observer
    if watcher is not None and pages:
        try:
            watcher.event(kind, pages=pages)
        except Exception as error:
            watcher.fault(error)


def _pool(engine: Engine) -> Any:
    assert engine.service is not None
    return engine.service.native.page_cache.page_pool
