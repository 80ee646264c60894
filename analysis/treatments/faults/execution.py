"""Faults in how often, and whether, a step of a request is executed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.shortfin.treatment import cache_of, replace_attribute
from analysis.treatments.faults.base import Fault, Injection, InvocationFault
from analysis.treatments.faults.invocations import WrongPage
from analysis.treatments.invocations import PendingInvocation

if TYPE_CHECKING:
    from analysis.engine import Engine

_STALL_S = 6.5
"""How long a thread is held up; longer than the live check waits without a word."""
_HANG_S = 600.0


class ExecutedTwice(InvocationFault):
    """The results of a call are thrown away, and the call is made again."""

    name = "fault:executed-twice"
    change = "One decode is made twice; the engine goes on with the results of the second call."
    rule, cause = "duplicate-execution", "repeated-step"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.again = True
        return Injection(invocation.request_ids[row])


class PrefillTwice(ExecutedTwice):
    """A prefill is made again."""

    name = "fault:prefill-twice"
    change = "One prefill is made twice; the engine goes on with the results of the second call."
    phase, after = "prefill", 0


class RepeatedElsewhere(InvocationFault):
    """A call is made again, and its second time writes and reads elsewhere."""

    name = "fault:repeated-elsewhere"
    control = False  # it needs a circumstance that a sweep may not have
    change = "One decode is made twice, the second time with another request's first page."
    rule, cause = "wrong-kv-read", "cross-request"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        kept = invocation.arrays["block_tables"].copy()
        injected = WrongPage.inject(self, invocation, row, probe)  # type: ignore[arg-type]
        if injected is not None:
            invocation.again, invocation.other_arrays = (
                True,
                {"block_tables": invocation.arrays["block_tables"]},
            )
            invocation.arrays["block_tables"] = kept
        return injected


class NeverFinishes(InvocationFault):
    """A call of the model does not come to its end."""

    name = "fault:never-finishes"
    change = "The results of one decode never reach the engine."
    rule, cause = "stuck-request", "invocation-pending"
    control: ClassVar[bool] = False

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.hang_s = _HANG_S
        return Injection(invocation.request_ids[row])


class WrongPageAfterStall(WrongPage):
    """The pool's thread is held up in an operation; later a row reads another's page."""

    name = "fault:wrong-page-after-stall"
    change = (
        f"A thread is held up for {_STALL_S:g} s while it gives pages back; after that the first"
        " page of one row's block table is another request's, once."
    )
    control: ClassVar[bool] = False

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self.stalled = False

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Hold up whoever gives pages back first, within the operation."""
        pool = cache_of(engine).page_pool
        freeing, free = threading.local(), pool.free_pages

        def entered() -> None:
            if getattr(freeing, "on", False) and not self.stalled:
                time.sleep(_STALL_S)
                self.stalled = True

        def freed(pages: Any) -> Any:
            freeing.on = bool(pages)
            try:
                return free(pages)
            finally:
                freeing.on = False

        replace_attribute(undo, pool, "_lock", _Entered(pool._lock, entered))
        replace_attribute(undo, pool, "free_pages", freed)
        super().apply(engine, undo)

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        return super().inject(invocation, row, probe) if self.stalled else None


class _Entered:
    """A lock at which something is done before it is taken."""

    def __init__(self, lock: Any, entering: Callable[[], None]) -> None:
        self._lock, self._entering = lock, entering

    def __enter__(self) -> Any:
        self._entering()
        return self._lock.__enter__()

    def __exit__(self, *error: object) -> Any:
        return self._lock.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


class _SubmitFault(Fault):
    """A fault in what the batcher gets."""

    after: ClassVar[int] = 4
    """Decodes of the request that are submitted properly first."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Look at every request that is submitted for a decode."""
        assert engine.service is not None
        service = engine.service.native
        # Below where the token is seen that it goes on with.
        facade = getattr(service, "unified_batcher", None)
        batcher = service.batcher if facade is None else facade._impl
        submit = batcher.submit
        seen: dict[str, int] = {}

        def submitted(request: Any) -> None:
            item, request = request, getattr(request, "rid", None)
            if request is not None and item.phase.name == "DECODE":
                seen[request] = seen.get(request, 0) + 1
                if seen[request] > self.after and self.targets(request):
                    self.injected = Injection(request)
                    self.damage(submit, item)
                    return
                self.note(item)
            submit(item)

        replace_attribute(undo, batcher, "submit", submitted)

    def note(self, item: Any) -> None:
        """Take note of a decode that is submitted properly."""

    def damage(self, submit: Callable[[Any], None], item: Any) -> None:
        """Do something else than submitting it."""
        raise NotImplementedError


class SubmittedTwice(_SubmitFault):
    """A request is twice in the batcher."""

    name = "fault:submitted-twice"
    change = "One decode is submitted to the batcher twice."
    needs = frozenset({"task-queue"})
    rule, cause = "duplicate-execution", "repeated-step"

    def damage(self, submit: Callable[[Any], None], item: Any) -> None:
        """Submit it twice."""
        submit(item)
        submit(item)


class DroppedByBatcher(_SubmitFault):
    """The batcher loses a request."""

    name = "fault:dropped-by-batcher"
    change = "One decode never reaches the batcher's queue."
    rule, cause = "stuck-request", "batcher-stalled"

    def damage(self, submit: Callable[[Any], None], item: Any) -> None:
        """Do nothing."""


class StepSkipped(_SubmitFault):
    """A decode is reported as done without having been made."""

    name = "fault:step-skipped"
    change = "One decode is not made; its request goes on with the results of the last one."
    needs = frozenset({"task-queue"})
    rule, cause = "token-without-invocation", "extra-token"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._results: dict[str, Any] = {}

    def note(self, item: Any) -> None:
        """Keep its results when it is made ready for its next step."""
        reset = item.reset

        def kept(phase: Any) -> None:
            self._results[item.rid] = item.result_logits
            reset(phase)

        if "reset" not in vars(item):
            item.reset = kept

    def damage(self, submit: Callable[[Any], None], item: Any) -> None:
        """Report it as done, with the results of its last step."""
        item.result_logits = self._results[item.rid]
        item.done.set_success()


EXECUTION_FAULTS: tuple[type[Fault], ...] = (
    ExecutedTwice, PrefillTwice, RepeatedElsewhere, NeverFinishes, WrongPageAfterStall,
    SubmittedTwice, DroppedByBatcher, StepSkipped,
)  # fmt: skip
