"""Rules about the progress of requests: stuck, empty or incomplete answers, repeated steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.core.wording import counted, listed
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.sanitizer.rules.base import Rule, about, each
from analysis.sanitizer.state import GIVEN_UP, EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event, unfinished

QUIET_S = 1.5
"""Seconds without progress, and without any new invocation, after which a request is stuck.

Release 3.1 delays a request by up to 0.5 s to batch it with others, later releases by less.
"""
STARVED_S = 10.0
"""Seconds without progress after which a request is stuck while others are served."""
_NAMED = 6


class StuckRequest(Rule):
    """Detects requests that never get an answer.

    A client's timeout alone is no finding: the engine may end the request later. The rule checks
    whether it did, or still makes progress, when the recording ends.
    """

    name = "stuck-request"
    sentence = "Every accepted request is answered."
    causes = each(
        "worker-died lock-held invocation-pending batcher-stalled lost-wakeup not-ended",
        "The client never gets an answer.",
    )
    tolerates_gaps = True

    def __init__(self) -> None:
        super().__init__()
        self._stalls: dict[str, Mapping[str, Any]] = {}
        self._given_up: dict[str, Event] = {}
        """Event `done` of each request that its client gave up and the engine has not ended."""
        self._ended: set[str] = set()
        """Requests that the engine ended before their client gave up."""
        self._progress_s: dict[str, float] = {}
        """Time of the last progress of each unfinished request, in seconds."""
        self._begun_s = 0.0
        """Time of the last start of an invocation, in seconds."""
        self._now_s = 0.0
        self._cut = False
        """Whether the recording ended before the engine was stopped."""
        self._death: Event | None = None
        self._threads: Sequence[Mapping[str, Any]] = ()
        """Stacks of all threads when the first request was given up; reported once."""

    def on_worker_died(self, state: EngineState, event: Event) -> Iterator[Finding]:
        self._death = self._death or event
        waiting = listed(sorted(state.under_way))
        what = f"A worker thread of the engine died; waiting requests: {waiting}. {event.message}"
        yield Finding("worker-died", what, event.request_id)

    def invocation(self, state: EngineState, step: ShadowStep) -> None:
        invocation = step.invocation
        self._begun_s = max(self._begun_s, invocation.t_s)
        for request in invocation.request_ids:
            self._progress(state, request, invocation.t_s)

    def _progress(self, state: EngineState, request: str | None, t_s: float) -> None:
        self._now_s = max(self._now_s, t_s)
        if request is not None and (request in state.under_way or request in self._given_up):
            self._progress_s[request] = max(t_s, self._progress_s.get(request, 0.0))

    def on_token(self, state: EngineState, event: Event) -> None:
        self._progress(state, event.request_id, event.t_s)

    on_first_token = on_pages_held = on_pages_dropped = after_submitted = on_token

    def on_submitted(self, state: EngineState, event: Event) -> None:
        self._forget(event.request)  # a rejected request may be submitted again
        self.on_snapshot(state, event)

    def _forget(self, request: str) -> None:
        """Remove a request that the engine has ended."""
        self._ended.discard(request)
        for known in (self._given_up, self._progress_s, self._stalls):
            known.pop(request, None)

    def on_invocation_unfinished(self, state: EngineState, event: Event) -> None:
        self._begun_s = max(self._begun_s, event.t_s)
        for request in unfinished(event).request_ids:
            self._progress(state, request, event.t_s)

    def on_snapshot(self, state: EngineState, event: Event) -> None:
        self._progress(state, None, event.t_s)

    on_memory = on_snapshot

    def on_stall(self, state: EngineState, event: Event) -> None:
        if event.request_id is not None:
            self._stalls[event.request_id] = event.extras["stall"]
            self._threads = event.extras["stall"].get("threads") or self._threads
        self._progress(state, None, event.t_s)

    def on_cut(self, state: EngineState, event: Event) -> None:
        self._cut = True
        self.on_snapshot(state, event)

    def on_late(self, state: EngineState, event: Event) -> None:
        self._forget(event.request)
        if event.request in state.under_way:  # its event `done` follows
            self._ended.add(event.request)
        self.on_token(state, event)

    def on_done(self, state: EngineState, event: Event) -> Iterator[Finding]:
        request = event.request
        self._progress(state, None, event.t_s)
        if event.outcome in GIVEN_UP:
            if self._death is not None:
                yield self._finding(state, event)
            elif request not in self._ended:
                self._given_up[request] = event
                # Earlier progress of a request from before the recording is unknown.
                self._progress_s.setdefault(request, event.t_s)
        if request not in self._given_up:
            self._forget(request)

    def _finding(self, state: EngineState, event: Event) -> Finding:
        stall = self._stalls.get(event.request) or {}
        cause, what = self._why(stall, state, event.request)
        threads, self._threads = self._threads, ()
        stacks = "\n".join(f"{t['thread']}: {' < '.join(t['frames'])}" for t in threads)
        return Finding(
            cause,
            f"{event.request} ended without an answer ({event.outcome}): {what}.",
            event.request,
            other_stack=stacks or None,
            seq=event.seq,
            t_s=event.t_s,
            thread=event.thread,
        )

    def _why(self, stall: Mapping[str, Any], state: EngineState, request: str) -> tuple[str, str]:
        """Return the cause and what the request waits for, in words."""
        if self._death is not None:
            return "worker-died", f"a worker had died at event {self._death.seq}"
        # The lock held longest: threads that wait for it may hold others.
        lock = max(stall.get("locks") or (), key=lambda lock: lock["seconds"], default=None)
        if lock is not None and lock["seconds"] >= QUIET_S:
            return "lock-held", (
                f"thread {lock['thread']} has held the lock of the {lock['lock']} for"
                f" {lock['seconds']:g} s"
            )
        if request in state.unfinished:
            return "invocation-pending", "its invocation never finished"
        if stall.get("state") == "pending":
            return "batcher-stalled", f"it waits for a {stall.get('phase') or 'invocation'}"
        if stall.get("state") == "reserved":
            return "batcher-stalled", "the scheduler waits for others of its group"
        sequence = state.last_of.get(request)
        executed = 0 if sequence is None else sequence.invocations
        after = f"after {counted(executed, 'invocation')}"
        if sequence is None or executed > len(sequence.answer):
            return "lost-wakeup", f"no step is pending for it, {after}"
        return "batcher-stalled", f"no invocation was started for its next step, {after}"

    def _is_stuck(self, request: str) -> bool:
        """Return whether a request has made no progress for so long that it counts as stuck."""
        still_s = self._now_s - self._progress_s.get(request, 0.0)
        quiet = still_s >= QUIET_S and self._now_s - self._begun_s >= QUIET_S
        return quiet or still_s >= STARVED_S

    def finish(self, state: EngineState) -> Iterator[Finding]:
        early = []
        for request, event in sorted(self._given_up.items()):
            if self._death is not None or self._is_stuck(request):
                yield self._finding(state, event)
            else:
                early.append(request)
        if early:
            state.remarks.append(
                f"Clients gave up {listed(early, most=_NAMED)}, and the recording ended too early"
                " to show whether the engine is stuck."
            )
        for request in sorted(state.under_way):
            if self._cut and self._death is None and not self._is_stuck(request):
                continue  # the process was killed: the engine may have been working
            executed = counted(state.under_way[request].invocations, "invocation")
            yield Finding(
                "worker-died" if self._death else "not-ended",
                f"{request} was still under way when the recording ended, after {executed}.",
                request,
            )


class EmptyAnswer(Rule):
    name = "empty-answer"
    sentence = "An answer has at least one token."
    causes = {"no-tokens": "The client takes an empty answer for a valid one."}
    tolerates_gaps = True

    def on_done(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if event.outcome == "empty":
            what = f"{event.request_id} was completed with no token."
            yield Finding("no-tokens", what, event.request_id)


class DuplicateExecution(Rule):
    name = "duplicate-execution"
    sentence = "Every step of a request is executed once."
    causes = {"repeated-step": "The step takes twice the time, and one token has two results."}
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for row, _ in step.known_rows():
            if not step.repeats[row]:
                continue
            twin = step.twin_of[row] != row
            where = "the same invocation" if twin else f"invocation {step.executed_by[row]}"
            first = int(step.first[row])
            what = f"repeats the step from position {first}, already executed in {where}"
            yield about(step, row, "repeated-step", what)


class TokenWithoutInvocation(Rule):
    name = "token-without-invocation"
    sentence = "Every token of an answer comes from its own invocation."
    causes = each(
        "extra-token completed-early", "The answer has more or fewer tokens than were computed."
    )
    tolerates_gaps = True

    def after_token(self, state: EngineState, event: Event) -> Iterator[Finding]:
        sequence = state.under_way.get(event.request)
        if sequence is None or sequence.unknown or len(sequence.answer) <= sequence.invocations:
            return
        executed = counted(sequence.invocations, "invocation")
        token = f"token {len(sequence.answer)} of its answer"
        what = f"{event.request_id} got {token} after {executed}."
        yield Finding("extra-token", what, event.request_id, severity=WRONG_DATA)

    after_first_token = after_token

    def after_done(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if event.value and event.outcome in ("ok", "wrong"):
            sequence = state.last_of.get(event.request)
            executed = 0 if sequence is None else sequence.invocations
            after = "" if sequence is None else f", after {counted(executed, 'invocation')}"
            what = f"{event.request_id} was completed {counted(event.value, 'token')} too early"
            yield Finding("completed-early", f"{what}{after}.", event.request_id)
