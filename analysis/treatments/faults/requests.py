"""Faults in how a request is led to its end; those that know the engine say which."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.shortfin.treatment import replace_attribute
from analysis.treatments.faults.base import Fault, Injection, InvocationFault
from analysis.treatments.invocations import PendingInvocation

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.shortfin.port import Call


class LostCompletion(InvocationFault):
    """A request's invocation lands and nobody tells it."""

    name = "fault:lost-completion"
    change = "One request is not woken when its invocation has landed."
    needs = frozenset({"request-list"})
    rule, cause = "stuck-request", "lost-wakeup"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        if row != invocation.real - 1:
            return None  # the rows before it must keep their places
        requests = invocation.process.exec_requests

        def mute() -> None:
            requests[-1] = Mute(requests[-1])

        invocation.afterwards = mute
        return Injection(invocation.request_ids[row])


class Mute:
    """Stands for a request, and lets nobody know that it is done."""

    def __init__(self, request: Any) -> None:
        self._request, self.done = request, self

    def set_success(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class CompletedEarly(Fault):
    """A request is told that its decode was done, which it was not."""

    name = "fault:completed-early"
    change = "One decode is reported as done without an invocation, with the last results."
    needs = frozenset({"request-list"})
    rule, cause = "token-without-invocation", "extra-token"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Answer one decode where the batcher takes it in."""
        batcher = engine.service.native.batcher  # type: ignore[union-attr]
        submit = batcher.submit
        results: dict[str, Any] = {}

        def submitted(item: Any) -> None:
            request = getattr(item, "rid", None)
            if request is not None and item.phase.name == "DECODE":
                count = len(item.input_token_ids)
                seen = results.setdefault(request, count)
                if count == seen + 4 and self.targets(request):
                    self.injected = Injection(request)
                    item.result_logits = self._logits
                    item.done.set_success()
                    return
            submit(item)

        self._logits: Any = None
        executor = engine.service.invocation_class()  # type: ignore[union-attr]
        run = executor.run

        async def noted(process: Any) -> None:
            await run(process)
            for request in process.exec_requests:
                self._logits = request.result_logits

        replace_attribute(undo, executor, "run", noted)
        replace_attribute(undo, batcher, "submit", submitted)


class TooShort(Fault):
    """A request is ended before it has all its tokens."""

    name = "fault:too-short"
    change = "One request is let have three tokens less than it wants."
    rule, cause = "token-without-invocation", "completed-early"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        adapter = engine.service
        assert adapter is not None
        launch = adapter.launch

        def launched(call: Call) -> None:
            if self.targets(call.request_id) and call.max_new_tokens > 3:
                self.injected = Injection(call.request_id)
                call = dataclasses.replace(call, max_new_tokens=call.max_new_tokens - 3)
            launch(call)

        replace_attribute(undo, adapter, "launch", launched)


REQUEST_FAULTS = (LostCompletion, CompletedEarly, TooShort)
