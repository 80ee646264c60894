"""A rule about what happens between the start and the end of an invocation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule, about, each
from analysis.sanitizer.shadow import UNKNOWN, Ints
from analysis.sanitizer.state import SERVED, EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event

_READS = "The device may read the page before or after the change."


class _Unfinished:
    """An unfinished invocation, with the rows whose results are not known to be there."""

    def __init__(self, step: ShadowStep) -> None:
        self.step, self.invocation = step, step.invocation
        self.rows = dict(enumerate(step.invocation.request_ids))
        self._slots: dict[int, Ints] = {}

    def slots(self, row: int) -> Ints:
        """Return the slots that a row attends to or writes a token to."""
        if row not in self._slots:
            step = self.step
            # Other rules report slots that the row must not read at all.
            sound = step.reads[row] & ~step.wrong[row] & ~step.beyond[row]
            written = step.write_slots[row, : int(step.tokens_of[row])]
            self._slots[row] = np.concatenate([step.read_slots[row][sound], written[written >= 0]])
        return self._slots[row]


class InFlightConflict(Rule):
    """Treats an invocation as an interval from its start to its result.

    A row has its result when the invocation has ended or a token of its request arrived since.
    """

    name = "in-flight-conflict"
    sentence = (
        "Until an invocation has finished, no page that it uses is freed, and no slot that it uses"
        " is rewritten."
    )
    causes = each("freed rewritten", _READS)
    limits = {
        "": "Without recorded results, a page that a row's own request frees is not reported. Slots"
        " that one invocation reads and an earlier one writes are left to `read-before-write`."
    }

    def __init__(self) -> None:
        super().__init__()
        self._unfinished: list[_Unfinished] = []
        self._acquired: dict[int, tuple[Event | None, Event]] = {}
        """The last two allocations of each page."""

    def _until(self, seq: int) -> list[_Unfinished]:
        """Return the invocations that have not ended at an item."""
        if self._unfinished:
            self._unfinished = [
                f for f in self._unfinished if f.rows and f.invocation.end_seq > seq
            ]
        return self._unfinished

    def on_acquire(self, state: EngineState, event: Event) -> None:
        for page in event.pages:
            _, before = self._acquired.get(page, (None, None))
            self._acquired[page] = before, event

    def on_free(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for call in self._until(event.seq):
            for row, request in call.rows.items():
                if request == event.request_id and call.invocation.result_digests is None:
                    continue  # its result may be there
                used = [page for page in event.pages if page in call.step.pages_of(row)]
                if used:
                    page, number = used[0], call.invocation.invocation_id
                    by = f" by {event.request_id}" if event.request_id else ""
                    what = f"Page {page} is freed{by} while invocation {number} uses it for"
                    what += f" {request} and has not finished."
                    other = event.request_id if event.request_id != request else None
                    stack = self._stack_of(page, request)
                    yield Finding("freed", what, request, other, page=page, other_stack=stack)

    def on_copy(self, state: EngineState, event: Event) -> Iterator[Finding]:
        target = event.pages[1]
        for call in self._until(event.seq):
            for row, request in call.rows.items():
                if target in call.slots(row) // state.stride:
                    number, stack = call.invocation.invocation_id, self._stack_of(target, request)
                    what = f"Page {target} is overwritten with page {event.pages[0]} while"
                    what += f" invocation {number} uses it for {request} and has not finished."
                    other = event.request_id if event.request_id != request else None
                    yield Finding("rewritten", what, request, other, page=target, other_stack=stack)

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        calls = list(self._until(step.invocation.seq))
        self._unfinished.append(_Unfinished(step))
        if not calls:
            return
        changed = (step.write_slots >= 0) & (step.write_content != step.before)
        changed &= (step.before != UNKNOWN) & (step.write_content != UNKNOWN)
        if not changed.any():
            return
        for call in calls:
            for row, request in call.rows.items():
                hit = changed & np.isin(step.write_slots, call.slots(row))
                if hit.any():
                    writer, place = (int(at[0]) for at in np.nonzero(hit))
                    slot = int(step.write_slots[writer, place])
                    yield self._rewritten(step, writer, slot, call, request)

    def _rewritten(
        self, step: ShadowStep, writer: int, slot: int, call: _Unfinished, request: str
    ) -> Finding:
        other, page = step.invocation.request_of(writer), slot // step.state.stride
        number = call.invocation.invocation_id
        what = (
            f"rewrites {step.state.place(slot)}, which invocation {number} uses for {request},"
            " before that has finished"
        )
        finding = about(
            step, writer, "rewritten", what, slot=slot, request_id=request,
            other_request_id=other if other != request else None,
            other_stack=self._stack_of(page, request),
        )  # fmt: skip
        finding.stack = self._stack_of(page, other)
        return finding

    def _stack_of(self, page: int, request: str | None) -> str | None:
        """Return the stack of a request's last allocation of a page, if it was one of two."""
        for event in reversed(self._acquired.get(page, ())):
            if event is not None and event.request_id == request:
                stack: str | None = event.stack
                return stack
        return None

    def _has_result(self, request: str) -> None:
        for call in self._unfinished:
            for row in [row for row, own in call.rows.items() if own == request]:
                del call.rows[row]

    def on_chosen(self, state: EngineState, event: Event) -> None:
        self._has_result(event.request)

    on_token = on_first_token = on_answered = on_chosen

    def on_done(self, state: EngineState, event: Event) -> None:
        if event.outcome in SERVED:
            self._has_result(event.request)
