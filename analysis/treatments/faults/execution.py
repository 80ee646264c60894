"""Faults in how often, and whether, a step of a request is executed."""

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
"""How long a thread is held up: longer than the live check waits for the next event."""
_HANG_S = 600.0


_repeated = "duplicate-execution", "repeated-step"


@fault("executed-twice", *_repeated)
def executed_twice(site: Site) -> Injection:
    """One decode is made twice; the engine goes on with the results of the second call."""
    site.invocation.again = True
    return site.injection()


@fault("prefill-twice", *_repeated, phase="prefill", after=0)
def prefill_twice(site: Site) -> Injection:
    """One prefill is made twice; the engine goes on with the results of the second call."""
    return executed_twice(site)


@fault("repeated-elsewhere", "wrong-kv-read", "cross-request", control=False)
def repeated_elsewhere(site: Site) -> Injection | None:
    """One decode is made twice, the second time with another request's first page."""
    before = site.tables.copy()
    injection = wrong_page(site)
    if injection is not None:
        site.invocation.again = True
        site.invocation.other_arrays = {"block_tables": site.tables.copy()}
        site.tables[:] = before
    return injection


@fault("never-finishes", "stuck-request", "invocation-pending", control=False)
def never_finishes(site: Site) -> Injection:
    """The results of one decode never reach the engine."""
    site.invocation.hang_s = _HANG_S
    return site.injection()


class StallFault(InvocationFault):
    """A fault after a thread was held up while it gave pages back."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Hold up the first thread that gives pages back, within the operation."""
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
    """A thread is held up for 6.5 s while it gives pages back, then a row reads a wrong page."""
    return wrong_page(site) if "stalled" in site.memory else None


@fault("submitted-twice", *_repeated, kind=SubmitFault, needs=["task-queue"])
def submitted_twice(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """One decode is submitted to the batcher twice."""
    submit(item)
    submit(item)


@fault("dropped-by-batcher", "stuck-request", "batcher-stalled", kind=SubmitFault)
def dropped_by_batcher(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """One decode never reaches the batcher's queue."""


@fault("step-skipped", "token-without-invocation", "extra-token", kind=SubmitFault,
       needs=["task-queue"])  # fmt: skip
def step_skipped(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """One decode is not made; its request goes on with the results of the last one."""
    completed_early(submit, item, last)
