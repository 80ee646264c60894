"""Applies events and invocations to the state in order, and checks the rules."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterable

from analysis.recording.stream import cut_in_words
from analysis.runs.schema import EVENT_KINDS
from analysis.sanitizer.context import context_of
from analysis.sanitizer.findings import Finding, Findings
from analysis.sanitizer.rules import RULES, Rule
from analysis.sanitizer.rules.contents import describe_coverage
from analysis.sanitizer.rules.tables import SharedPageWrite
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event, Invocation, Item, UnknownInvocation, unfinished
from analysis.snapshots.snapshot import Snapshot

Handler = Callable[[EngineState, Event], Iterable[Finding] | None]
_NOTED = ("invocation_unfinished", "unfinished", "cut", "observer_error")
_MOST_ERRORS = 3
_BEFORE, _BEAMS, _UNKNOWN = (
    "under way before the recording began",
    "several beams of one request",
    "an earlier invocation of the request is unknown",
)
_PART = "checked in part, after an unknown operation of the cache"
_LATE = "recorded too late: the queue was full"
FULL = "the recording was full"
"""Reasons why an invocation is not checked."""


class Checker:
    """Takes events, invocations and snapshots in any order, and checks them in order of `seq`.

    Every number in the sequence is an event, the start of an invocation, or its end. An invocation
    is checked at its start. Later items wait until its arguments are known.
    """

    def __init__(
        self,
        first: Snapshot,
        stride: int,
        *,
        context_length: int | None = None,
        rules: Iterable[type[Rule]] = RULES,
    ) -> None:
        self.state = EngineState(first, stride)
        self.state.context_length = context_length
        self.findings = Findings()
        self._rules = [rule() for rule in rules]
        self._set_handlers()
        self._first = self._next = self.state.seq + 1
        self._has_gap = False
        self._coverage: Event | None = None
        """The last event with the coverage of byte checks."""
        self._errors = 0
        self._skipped: set[int] = set()
        """Invocations already counted as unchecked."""
        self._waiting: list[tuple[int, int, Item | None]] = []
        """Heap of (seq, counter, item); the counter avoids comparing items."""
        self._count = itertools.count()
        self._snapshots: dict[int, Snapshot] = {}

    def _set_handlers(self) -> None:
        self._before, self._after = self._handlers("on_"), self._handlers("after_")

    def _handlers(self, prefix: str) -> dict[str, list[tuple[Rule, Handler]]]:
        handlers: dict[str, list[tuple[Rule, Handler]]] = {}
        for kind in EVENT_KINDS:
            for rule in self._rules:
                if (method := getattr(rule, f"{prefix}{kind}", None)) is not None:
                    handlers.setdefault(kind, []).append((rule, method))
        return handlers

    # -- the queue -------------------------------------------------------------------------

    def put(self, seq: int, item: Item | None) -> None:
        """Add an item; None for an unused number or the end of an invocation."""
        if seq >= self._next:
            heapq.heappush(self._waiting, (seq, next(self._count), item))
        elif seq >= self._first and isinstance(item, Invocation | UnknownInvocation):
            self._skip(UnknownInvocation(item.invocation_id, item.request_ids, reason=_LATE))

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Add a snapshot; call it before `put` of its event."""
        if snapshot.seq is not None:
            self._snapshots[snapshot.seq] = snapshot

    def go(self, *, whole: bool = False, until_s: float = math.inf) -> int:
        """Check the items that are next, and return how many were checked.

        `whole` ignores gaps. `until_s` is a limit on the monotonic clock, in seconds.
        """
        done = 0
        while self._waiting and (whole or self._waiting[0][0] <= self._next):
            seq, _, item = heapq.heappop(self._waiting)
            self._next = max(self._next, seq + 1)
            self._check(item)
            done += 1
            if time.monotonic() >= until_s:
                break
        return done

    def skip_gap(self) -> None:
        """Skip the missing item; from then on, only rules that tolerate gaps are checked."""
        if self._waiting:
            self._next = max(self._next, self._waiting[0][0])
            self._tolerate_gap()

    def _tolerate_gap(self) -> None:
        self._has_gap = True
        self._rules = [rule for rule in self._rules if rule.tolerates_gaps]
        self._set_handlers()

    @property
    def waiting(self) -> int:
        """Number of queued items."""
        return len(self._waiting)

    @property
    def waits_for(self) -> int | None:
        """`seq` of the missing item; None if the queue is empty."""
        return self._next if self._waiting else None

    def finish(self, *, full: bool = False) -> Findings:
        """Check the remaining items and, unless the recording was full, the final state."""
        self.go(whole=True)
        for rule in () if full else self._rules:
            self._add(rule, rule.finish(self.state), None)
        for remark in [*self.state.remarks, *describe_coverage(self._coverage)[1]]:
            self.findings.note(remark)
        if full:
            self.findings.note("The recording was full: later steps were not checked.")
        return self.findings

    # -- checking --------------------------------------------------------------------------

    def _check(self, item: Item | None) -> None:
        if isinstance(item, Event):
            self._event(item)
        elif isinstance(item, UnknownInvocation):
            self._skip(item)
        elif item is not None:
            self._invocation(item)

    def _skip(self, invocation: UnknownInvocation) -> None:
        if invocation.invocation_id in self._skipped:
            return
        self._skipped.add(invocation.invocation_id)
        self.state.skip(invocation)
        self.findings.unchecked.add(invocation.reason, invocation.request_ids)

    def _event(self, event: Event) -> None:
        kind = event.kind
        if kind in _NOTED:
            self._note(event)
        for rule, handler in self._before.get(kind, ()):
            self._add(rule, handler(self.state, event), event)
        self.state.step(event)
        for rule, handler in self._after.get(kind, ()):
            self._add(rule, handler(self.state, event), event)
        self.findings.events += 1
        if kind == "snapshot":
            self._snapshot(event)
        elif kind == "checksums":
            # Pages may become checkable later, so only the last event counts.
            self._coverage = event
            self.findings.bytes_checked, _ = describe_coverage(event)

    def _note(self, event: Event) -> None:
        if event.kind == "invocation_unfinished":
            self._skip(unfinished(event))
        elif event.kind == "unfinished":
            self._tolerate_gap()
            self.findings.note(
                "The recording ended during an operation of the cache. Its changes are unknown, so"
                " only some rules were checked after it."
            )
        elif event.kind == "cut":
            late_s, requests = event.extras.get("late_s"), event.extras.get("request_ids")
            self.findings.note(cut_in_words(event.t_s, late_s, requests))
        elif self._errors < _MOST_ERRORS:
            self._errors += 1
            self.findings.note(f"A part could not be recorded: {event.message}.")

    def _snapshot(self, event: Event) -> None:
        snapshot, state = self._snapshots.pop(event.seq, None), self.state
        if snapshot is None or not snapshot.consistent:
            return
        for rule in self._rules:
            self._add(rule, rule.at_snapshot(state, snapshot), event)
        if state.under_way or state.given_up or state.preexisting & state.held.keys():
            return
        for rule in self._rules:
            self._add(rule, rule.at_quiescence(state, snapshot), event)

    def _invocation(self, invocation: Invocation) -> None:
        self.state.last_invocation = invocation.invocation_id
        if invocation.phase == "prefill" and invocation.starts is not None:
            self.state.has_starts = True
        step = ShadowStep(self.state, invocation)
        self.state.seq = invocation.seq
        self.findings.invocations += 1
        self.findings.slots_read += int(step.reads.sum())
        for rule in self._rules:
            self._add(rule, rule.invocation(self.state, step), invocation, step)
            if isinstance(rule, SharedPageWrite):
                self.findings.rewritten = rule.rewritten
        self._count_unchecked(step)

    def _count_unchecked(self, step: ShadowStep) -> None:
        ids = step.invocation.request_ids
        if requests := [ids[row] for row, s in enumerate(step.sequences) if s is None]:
            known = [self.state.last_of.get(request) for request in requests]
            beams = len(set(requests)) < len(requests)
            reason = _BEAMS if beams else _BEFORE if None in known else _UNKNOWN
            self.findings.unchecked.add(reason, set(requests))
        elif self._has_gap:
            self.findings.unchecked.add(_PART, set(ids))

    def _add(
        self,
        rule: Rule,
        found: Iterable[Finding] | None,
        at: Event | Invocation | None,
        step: ShadowStep | None = None,
    ) -> None:
        for finding in found or ():
            finding.rule, finding.sentence = rule.name, rule.sentence
            if at is not None:
                finding.seq, finding.t_s, finding.thread = at.seq, at.t_s, at.thread
            if isinstance(at, Invocation):
                finding.invocation_id, finding.operation = at.invocation_id, at.phase
            elif at is not None:
                finding.stack, finding.operation = at.stack, at.operation
            if self.findings.add(finding):
                finding.context = context_of(self.state, finding, step)
