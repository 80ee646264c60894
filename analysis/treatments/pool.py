"""Treatments of the pool: which pages can be allocated, and when they are freed."""

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
    "A request gets page 0, which padding rows and block tables also use.",
)
def reserve_padding_page(engine: LiveEngine, undo: ExitStack) -> None:
    """Removes page 0 from the pool."""
    pool, withheld = cache_of(engine).page_pool, engine.service.withheld
    if not take_pool_lock(pool):
        raise EngineError(
            "A thread of the engine holds the pool's lock, so page 0 cannot be reserved. Start a"
            " new engine."
        )
    try:
        reserved = [p for p in pool.available_pages if p.index == _PADDING_PAGE]
        if not reserved:
            raise EngineError(
                "Page 0 is in use, so it cannot be reserved. Apply reserve-padding-page before"
                " the first request."
            )
        pool.available_pages.remove(reserved[0])
    finally:
        pool._lock.release()

    @replaced(undo, pool, "free_pages")
    def freed(free: Any, pages: Sequence[Any]) -> Any:
        # A padded block table may be freed, but page 0 was never allocated.
        return free([p for p in pages if p.index != _PADDING_PAGE])

    def back() -> None:
        withheld.discard(_PADDING_PAGE)
        # A hanging thread may hold the lock; the insertion is atomic in CPython.
        got = take_pool_lock(pool)
        pool.available_pages.insert(0, reserved[0])
        if got:
            pool._lock.release()

    withheld.add(_PADDING_PAGE)
    undo.callback(back)


class BigPool(Treatment):
    """Gives the engine enough pages for all requests."""

    name = "big-pool"
    hypothesis = "Requests fail because of few pages: exhaustion, eviction or reuse."
    change = "Starts the engine with enough pages for all requests."
    takes = "the number of pages"
    acts_on = "server"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        if parameter is not None and not (parameter.isdigit() and int(parameter)):
            raise EngineError(f"big-pool needs a whole number of pages from 1, not {parameter!r}.")
        self.page_count = int(parameter or _MANY)

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        if engine.config.page_count < (self.page_count or 0):
            raise EngineError(
                f"The treatment {self.name} takes effect when an engine starts. Start it with"
                f" EngineConfig(page_count={self.page_count}); sweeps do this automatically."
            )


class FreeUnpublishedPages(Treatment):
    """Frees a request's unpublished pages when it ends.

    With records, `keep-decode-record` prevents the same leak at its cause, so this is not a fix.
    """

    name = "free-unpublished-pages"
    hypothesis = "A request's unpublished pages are leaked when it ends."
    change = "Frees a request's pages at its end if they are neither free nor cached."
    needs = frozenset({"prefix-sharing"})

    @classmethod
    def check(cls, release: str | None, prefix_sharing: str) -> None:
        """Raise EngineError if it cannot be applied, or if nothing is ever published."""
        super().check(release, prefix_sharing)
        if prefix_sharing == "none" and "records" not in row_of(release or "").capabilities:
            raise EngineError(
                f"The treatment {cls.name} needs prefix sharing trie on shortfin {release}. Without"
                " it all pages are freed."
            )

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        part_of(engine.release, "treatments").free_unpublished_pages(engine, undo)
