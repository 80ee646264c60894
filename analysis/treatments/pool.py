"""Treatments of which pages a request can get, and when they are given back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from analysis.core.errors import EngineError
from analysis.shortfin.cache import part_of
from analysis.shortfin.releases import row_of
from analysis.shortfin.treatment import (
    LiveEngine,
    Treatment,
    cache_of,
    replaced,
    take_pool_lock,
    treatment,
)

_PADDING_PAGE = 0
_MANY = 4096


@treatment(
    "reserve-padding-page",
    "A request is given page 0, which rows and block tables are padded with.",
)
def reserve_padding_page(engine: LiveEngine, undo: ExitStack) -> None:
    """Page 0 is kept out of the pool."""
    pool, withheld = cache_of(engine).page_pool, engine.service.withheld
    if not take_pool_lock(pool):
        raise EngineError(
            "The pool's lock is kept by some thread of the engine, so page 0 cannot be"
            " reserved: start a new engine."
        )
    try:
        reserved = [p for p in pool.available_pages if p.index == _PADDING_PAGE]
        if not reserved:
            raise EngineError(
                "Page 0 is in use, so it cannot be reserved: apply reserve-padding-page before"
                " the engine has answered anything."
            )
        pool.available_pages.remove(reserved[0])
    finally:
        pool._lock.release()

    @replaced(undo, pool, "free_pages")
    def freed(free: Any, pages: Sequence[Any]) -> Any:
        # A block table that was padded with 0 may be given back; the page was never taken.
        return free([p for p in pages if p.index != _PADDING_PAGE])

    def back() -> None:
        withheld.discard(_PADDING_PAGE)
        # A thread that hangs may keep the lock; inserting is one step of the interpreter.
        got = take_pool_lock(pool)
        pool.available_pages.insert(0, reserved[0])
        if got:
            pool._lock.release()

    withheld.add(_PADDING_PAGE)
    undo.callback(back)


class BigPool(Treatment):
    """There are enough pages for all requests."""

    name = "big-pool"
    hypothesis = "Requests contend for pages: exhaustion, eviction and reuse make them fail."
    change = "The engine is started with so many pages that none is missed."
    takes = "the number of pages"
    acts_on = "server"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        if parameter is not None and not (parameter.isdigit() and int(parameter)):
            raise EngineError(f"A big pool has a whole number of pages from 1, not {parameter!r}.")
        self.page_count = int(parameter or _MANY)

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        if engine.config.page_count < (self.page_count or 0):
            raise EngineError(
                f"The treatment {self.name} is made when an engine starts: start it with"
                f" EngineConfig(page_count={self.page_count}), as sweeps do by themselves."
            )


class FreeUnpublishedPages(Treatment):
    """Pages that a request took and did not publish go back to the pool when it ends.

    With records it ends the leak that `keep-decode-record` ends at its root, so it is no fix there.
    """

    name = "free-unpublished-pages"
    hypothesis = "Pages that a request took, and did not publish, are lost when it ends."
    change = "At a request's end its pages are freed that are neither free nor known to the cache."

    @classmethod
    def check(cls, release: str | None, prefix_sharing: str) -> None:
        """Raise EngineError where it cannot be applied, or where nothing is ever published."""
        super().check(release, prefix_sharing)
        if prefix_sharing == "none" and "allocations" in row_of(release or "").capabilities:
            raise EngineError(
                f"The treatment {cls.name} needs prefix sharing trie on shortfin {release}: without"
                " it nothing is published, and all is freed."
            )

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        part_of(engine.release, "treatments").free_unpublished_pages(engine, undo)
