"""Faults between the filling of arguments and their reading, and in the order of invocations."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION
from analysis.shortfin.treatment import replace_attribute
from analysis.treatments.faults.base import Fault, Injection, InvocationFault, place_of
from analysis.treatments.faults.requests import Mute
from analysis.treatments.invocations import PendingInvocation

if TYPE_CHECKING:
    from analysis.engine import Engine

_PATIENCE_S = 2.0


class Passing(InvocationFault):
    """A fault in arguments that are as they were filled before, and after, the device reads them.

    Who reads them only when the invocation has landed sees nothing of it.
    """

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        injected = self.alter(invocation, row, probe)
        invocation.secretly = invocation.put_back = injected is not None
        return injected

    @abstractmethod
    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        """Change the arrays of an invocation; None if it does not offer itself."""


class TokensExchanged(Passing):
    """Two rows are exchanged in a buffer that was filled."""

    name = "fault:tokens-exchanged-after-filling"
    change = "Two rows of one decode have each other's tokens while the device reads, once."
    rule, cause = "argument-changed", "tokens"

    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tokens = invocation.arrays["tokens"]
        for other in range(invocation.real):
            if tokens[row, 0] != tokens[other, 0]:
                tokens[[row, other]] = tokens[[other, row]]
                return Injection(invocation.request_ids[row])
        return None


class TokensOfLast(Passing):
    """A buffer holds the tokens of the invocation before."""

    name = "fault:tokens-of-last-invocation"
    change = "The tokens of one decode are those of the one before while the device reads, once."
    rule, cause = "argument-changed", "tokens"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._last: Any = None

    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tokens, last = invocation.arrays["tokens"], self._last
        self._last = tokens.copy()
        if last is None or last.shape != tokens.shape or last[row, 0] == tokens[row, 0]:
            return None
        tokens[:] = last
        return Injection(invocation.request_ids[row])


class PromptChanged(Passing):
    """A token of a prompt is another one when the device reads it."""

    name = "fault:prompt-changed-after-filling"
    change = "One token of one row of a prefill is another while the device reads, once."
    phase, after = "prefill", 0
    rule, cause = "argument-changed", "tokens"

    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tokens = invocation.arrays["tokens"]
        tokens[row, 1] += 1 if tokens[row, 1] < 5 else -1
        return Injection(invocation.request_ids[row])


class LengthChanged(Passing):
    """A row's length is another one when the device reads it."""

    name = "fault:length-changed-after-filling"
    change = "One row of a decode is one token too short while the device reads, once."
    rule, cause = "argument-changed", "seq_lens"

    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.arrays["seq_lens"][row] -= 1
        return Injection(invocation.request_ids[row])


class StartChanged(Passing):
    """A row's start is another one when the device reads it."""

    name = "fault:start-changed-after-filling"
    change = "One row of a decode starts one position early while the device reads, once."
    rule, cause = "argument-changed", "start_positions"

    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.arrays["start_positions"][row] -= 1
        return Injection(invocation.request_ids[row])


class TableChanged(Passing):
    """A row's block table is another one when the device reads it."""

    name = "fault:table-changed-after-filling"
    change = "The first page of one row of a decode is a free one while the device reads, once."
    rule, cause = "argument-changed", "block_tables"

    def alter(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        free = probe.pool.available_pages
        if not free:
            return None
        # From the middle: one that was hardly ever in a block table.
        invocation.arrays["block_tables"][row, 0] = page = int(free[len(free) // 2].index)
        return Injection(invocation.request_ids[row], None, page)


class RefilledDuringInvocation(InvocationFault):
    """The buffers of an invocation are given to another one before it has landed."""

    name = "fault:refilled-in-invocation"
    change = "The lengths of one decode are overwritten when it was called, before it lands, once."
    rule, cause = "argument-changed", "seq_lens"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.later = {"seq_lens": np.roll(invocation.arrays["seq_lens"], 1) + 1}
        return Injection(invocation.request_ids[row])


class NextBeforeFinish(Fault):
    """A request goes on before its decode has landed."""

    name = "fault:next-before-finish"
    change = "One decode is reported as done with the last results before it has landed, once."
    needs = frozenset({"request-list"})
    rule, cause = "read-before-write", "write-pending"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._results: dict[str, Any] = {}
        self._begun = False

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Hold one decode back until the next of a request of it has begun."""
        adapter = engine.service
        assert adapter is not None
        executor, functions = adapter.invocation_class(), adapter.native.decode_functions
        run = executor.run

        async def running(process: Any) -> None:
            await run(process)
            for request in process.exec_requests:
                if request.result_logits is not None:
                    self._results[request.rid] = request.result_logits

        replace_attribute(undo, executor, "run", running)
        for size, function in list(functions.items()):
            functions[size] = self._holding(function, engine)
            undo.callback(functions.__setitem__, size, function)

    def _holding(self, function: Any, engine: Engine) -> Any:
        async def fly(*args: Any, fiber: Any) -> Any:
            process = CURRENT_INVOCATION.get()
            requests = [] if process is None else process.exec_requests
            if self.injected is not None:
                self._begun |= any(r.rid == self.injected.request_id for r in requests)
                return await function(*args, fiber=fiber)
            results = await function(*args, fiber=fiber)
            for row, request in enumerate(requests):
                if request.rid in self._results and self.targets(request.rid):
                    self.injected = Injection(request.rid, seq=place_of(engine.probe))
                    requests[row] = Mute(request)
                    request.result_logits = self._results[request.rid]
                    request.done.set_success()
                    deadline = time.monotonic() + _PATIENCE_S
                    while not self._begun and time.monotonic() < deadline:
                        await asyncio.sleep(0.001)
                    break
            return results

        return fly


ARGUMENT_FAULTS = (
    TokensExchanged, TokensOfLast, PromptChanged, LengthChanged, StartChanged, TableChanged,
    RefilledDuringInvocation, NextBeforeFinish,
)  # fmt: skip
