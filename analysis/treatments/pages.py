"""Treatments of the content of free, newly allocated or just freed pages."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from analysis.core.errors import EngineError
from analysis.model.elements import encode
from analysis.recording.checksums import writing
from analysis.shortfin.treatment import (
    LiveEngine,
    Treatment,
    cache_of,
    replace_attribute,
    replaced,
    take_pool_lock,
    treatment,
)

_PATTERNS = {"nan": float("nan"), "zero": 0.0}


def fill_page(pool: Any, page: int, value: float) -> None:
    """Fill a page with a number, on all devices."""
    for table in pool.page_tables:
        bits = encode(value, str(table.dtype))
        with table.view(page).map(write=True) as mapped:
            np.frombuffer(mapped, dtype=bits.dtype)[:] = bits


def _fill(pool: Any, page: int, value: float) -> None:
    """Fill a page, and report the write to the byte checks."""
    with writing(pool, page):
        fill_page(pool, page, value)


def page_digest(pool: Any, page: int) -> bytes:
    """Return a hash of a page's bytes on all devices."""
    digest = hashlib.blake2b(digest_size=16)
    for table in pool.page_tables:
        with table.view(page).map(read=True) as mapped:
            digest.update(bytes(mapped))
    return digest.digest()


@treatment(
    "zero-page-tables",
    "Slots that were never written hold old data of the device memory.",
    upstream="#738",
    acts_on="contents",
)
def zero_page_tables(engine: LiveEngine, undo: ExitStack) -> None:
    """Fills all free pages with zeros once, when it is applied."""
    pool = _pool(engine)
    for page in list(pool.available_pages):
        _fill(pool, page.index, 0.0)


@treatment(
    "zero-on-acquire",
    "Rows read the data of an earlier request in a reused page.",
    acts_on="contents",
)
def zero_on_acquire(engine: LiveEngine, undo: ExitStack) -> None:
    """Fills every page with zeros when it is taken from the pool."""
    pool = _pool(engine)

    @replaced(undo, pool, "acquire_free_pages")
    def acquired(acquire: Any, count: int) -> Any:
        pages = acquire(count)
        for page in pages or ():
            _fill(pool, page.index, 0.0)
        return pages


class PoisonFreedPages(Treatment):
    """Fills free pages with a pattern, as SLUB poisons freed objects."""

    name = "poison-freed-pages"
    hypothesis = "Freed or new pages are read, so a pattern in them changes the answers."
    change = "Fills pages with a pattern while they are free."
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

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        pool, value = _pool(engine), self.value
        for page in list(pool.available_pages):
            _fill(pool, page.index, value)

        @replaced(undo, pool, "free_pages")
        def freed(free: Any, pages: Sequence[Any]) -> Any:
            for page in pages:
                _fill(pool, page.index, value)
            return free(pages)


class Quarantine(Treatment):
    """Withholds freed pages for a while, as AddressSanitizer's quarantine."""

    name = "quarantine"
    hypothesis = "Pages are written or read after they were freed and another request owns them."
    change = "Withholds the last freed pages, and checks their bytes when they are released."
    takes = "the number of withheld pages"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        if parameter is not None and not (parameter.isdigit() and int(parameter)):
            raise EngineError(
                f"Quarantine needs a whole number of pages, at least 1, not {parameter!r}."
            )
        self.size = int(parameter or 8)
        self.written: list[int] = []
        """Pages that were written after they were freed."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        pool = _pool(engine)
        free = pool.free_pages
        quarantined, lock = engine.service.quarantined, threading.Lock()
        undo.callback(quarantined.clear)

        def release(count: int) -> None:
            out: list[tuple[Any, bytes]] = []
            with lock:
                while quarantined and len(out) < count:
                    out.append(quarantined.popleft())
            for page, digest in out:
                if page_digest(pool, page.index) != digest:
                    self.written.append(page.index)
                    _report(engine, "written_after_free", [page.index])
            if out:
                free([page for page, _ in out])

        def freed(pages: Sequence[Any]) -> None:
            entered = [(page, page_digest(pool, page.index)) for page in _once(pages)]
            _report(engine, "quarantined", [page.index for page, _ in entered])
            with lock:
                inside = {page.index for page, _ in quarantined}
                quarantined.extend(item for item in entered if item[0].index not in inside)
                over = len(quarantined) - self.size
            release(over)

        @replaced(undo, pool, "acquire_free_pages")
        def acquired(acquire: Any, count: int) -> Any:
            # Withheld pages must not make the pool look empty.
            release(count - len(pool.available_pages))
            return acquire(count)

        replace_attribute(undo, pool, "free_pages", freed)

        @undo.callback
        def release_all() -> None:
            if take_pool_lock(pool):  # False if a hanging thread holds it
                pool._lock.release()
                release(len(quarantined))


def _once(pages: Iterable[Any]) -> list[Any]:
    return list({page.index: page for page in pages}.values())


def _report(engine: LiveEngine, kind: str, pages: list[int]) -> None:
    observer = None if engine.probe is None else engine.probe.observer
    if observer is not None and pages:
        try:
            observer.event(kind, pages=pages)
        except Exception as error:
            observer.fault(error)


def _pool(engine: LiveEngine) -> Any:
    return cache_of(engine).page_pool
