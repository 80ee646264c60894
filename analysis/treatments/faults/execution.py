"""Faults in the execution of steps: repeated, skipped or stalled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from analysis.shortfin.treatment import LiveEngine, cache_of, replace_attribute, replaced
from analysis.treatments.faults.base import Injection, InvocationFault, Site, fault
from analysis.treatments.faults.invocations import wrong_page
from analysis.treatments.faults.requests import SubmitFault, completed_early

_STALL_S = 6.5
"""Seconds that a thread is stalled: longer than the live check waits for the next event."""
_HANG_S = 600.0


_repeated = "duplicate-execution", "repeated-step"


@fault("executed-twice", *_repeated)
def executed_twice(site: Site) -> Injection:
    """Executes a decode twice; the engine gets the second results."""
    site.invocation.again = True
    return site.injection()


@fault("prefill-twice", *_repeated, phase="prefill", after=0)
def prefill_twice(site: Site) -> Injection:
    """Executes a prefill twice; the engine gets the second results."""
    return executed_twice(site)


@fault("repeated-elsewhere", "wrong-kv-read", "cross-request", control=False)
def repeated_elsewhere(site: Site) -> Injection | None:
    """Executes a decode twice, the second time with another request's first page."""
    before = site.tables.copy()
    injection = wrong_page(site)
    if injection is not None:
        site.invocation.again = True
        site.invocation.other_arrays = {"block_tables": site.tables.copy()}
        site.tables[:] = before
    return injection


@fault("never-finishes", "stuck-request", "invocation-pending", control=False)
def never_finishes(site: Site) -> Injection:
    """Withholds the results of one decode from the engine."""
    site.invocation.hang_s = _HANG_S
    return site.injection()


class StallFault(InvocationFault):
    """A fault after a thread was stalled while it freed pages."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Stall the first thread that frees pages, within the operation."""
        pool = cache_of(engine).page_pool
        freeing = threading.local()

        def entered() -> None:
            if getattr(freeing, "on", False) and "stalled" not in self.memory:
                time.sleep(_STALL_S)
                self.memory["stalled"] = True

        @replaced(undo, pool, "free_pages")
        def freed(free: Any, pages: Any) -> Any:
            freeing.on = bool(pages)
            try:
                return free(pages)
            finally:
                freeing.on = False

        replace_attribute(undo, pool, "_lock", _Entered(pool._lock, entered))
        super().apply(engine, undo)


class _Entered:
    """A lock that calls a function before it is taken."""

    def __init__(self, lock: Any, entering: Callable[[], None]) -> None:
        self._lock, self._entering = lock, entering

    def __enter__(self) -> Any:
        self._entering()
        return self._lock.__enter__()

    def __exit__(self, *error: object) -> Any:
        return self._lock.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


@fault("wrong-page-after-stall", "wrong-kv-read", "cross-request", kind=StallFault, control=False)
def wrong_page_after_stall(site: Site) -> Injection | None:
    """Stalls a thread for 6.5 s while it frees pages, then gives a row a wrong page."""
    return wrong_page(site) if "stalled" in site.memory else None


@fault("submitted-twice", *_repeated, kind=SubmitFault, needs=["task-queue"])
def submitted_twice(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """Submits a decode to the batcher twice."""
    submit(item)
    submit(item)


@fault("dropped-by-batcher", "stuck-request", "batcher-stalled", kind=SubmitFault)
def dropped_by_batcher(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """Drops a decode before the batcher's queue."""


@fault("step-skipped", "token-without-invocation", "extra-token", kind=SubmitFault,
       needs=["task-queue"])  # fmt: skip
def step_skipped(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """Skips a decode; its request gets the previous results."""
    completed_early(submit, item, last)
