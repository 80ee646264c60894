"""Treatments of which pages there are to be had."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.core.errors import EngineError
from analysis.shortfin.treatment import Treatment, cache_of, replace_attribute, take_pool_lock

if TYPE_CHECKING:
    from analysis.engine import Engine

_PADDING_PAGE = 0
_MANY = 4096


class ReservePaddingPage(Treatment):
    """The page that padding writes belongs to nobody."""

    name = "reserve-padding-page"
    hypothesis = "A request is given page 0, which rows and block tables are padded with."
    change = "Page 0 is kept out of the pool."

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        assert engine.service is not None
        pool, withheld = cache_of(engine).page_pool, engine.service.withheld
        if not take_pool_lock(pool):
            raise EngineError(
                "The pool's lock is kept by some thread of the engine, so page 0 cannot be"
                " reserved: start a new engine."
            )
        try:
            kept = [p for p in pool.available_pages if p.index == _PADDING_PAGE]
            if not kept:
                raise EngineError(
                    "Page 0 is in use, so it cannot be reserved: apply reserve-padding-page before"
                    " the engine has answered anything."
                )
            pool.available_pages.remove(kept[0])
        finally:
            pool._lock.release()
        free = pool.free_pages

        def freed(pages: Sequence[Any]) -> Any:
            # A block table that was padded with 0 may be given back; the page was never taken.
            return free([p for p in pages if p.index != _PADDING_PAGE])

        def back() -> None:
            withheld.discard(_PADDING_PAGE)
            # A thread that hangs may keep the lock; inserting is one step of the interpreter.
            got = take_pool_lock(pool)
            pool.available_pages.insert(0, kept[0])
            if got:
                pool._lock.release()

        replace_attribute(undo, pool, "free_pages", freed)
        withheld.add(_PADDING_PAGE)
        undo.callback(back)


class BigPool(Treatment):
    """There are pages for everybody."""

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

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        if engine.config.page_count < (self.page_count or 0):
            raise EngineError(
                f"The treatment {self.name} is made when an engine starts: start it with"
                f" EngineConfig(page_count={self.page_count}), as sweeps do by themselves."
            )
