"""Leads the stream of events and invocations of one engine past the rules, in order."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from analysis.recording.stream import cut_in_words
from analysis.runs.schema import EVENT_KINDS
from analysis.sanitizer.findings import Finding, Findings
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules import RULES, Rule
from analysis.sanitizer.rules.contents import coverage_in_words
from analysis.sanitizer.rules.tables import SharedPages
from analysis.sanitizer.scene import scene_of
from analysis.sanitizer.stream import unlanded
from analysis.sanitizer.world import Event, Invocation, Unread, World
from analysis.snapshots.snapshot import Snapshot

Ask = Callable[[World, Event], Iterable[Finding]]
_SHOWN_FAULTS = 3
_BEFORE, _BEAMS, _LOST = (
    "under way before the watching began",
    "several beams under the name of one request",
    "an earlier invocation of the request is not known",
)
_PART = "checked in part, after an operation of the cache whose end is not known"
_LATE = "known too late, when more waited for it than is kept"
"""Why an invocation is not checked."""


class Checker:
    """Takes events, invocations and snapshots in any order and checks them in that of their `seq`.

    Every place in the sequence belongs to an event, to an invocation's start, or to its end. An
    invocation is checked where it started, since its arguments are what they were then; it can be
    only once they are known, so what comes after waits for it.
    """

    def __init__(
        self,
        first: Snapshot,
        stride: int,
        *,
        context: int | None = None,
        rules: Iterable[type[Rule]] = RULES,
    ) -> None:
        self.world = World(first, stride)
        self.world.context = context
        self.findings = Findings()
        self._rules = [rule() for rule in rules]
        self._listen()
        self._first = self._next = self.world.seq + 1
        self._gone_over = False
        self._coverage: Event | None = None
        """How far the bytes of pages were checked, as it was told last."""
        self._faults = 0
        self._lost: set[int] = set()
        """Invocations that were counted as unchecked."""
        self._waiting: list[tuple[int, Any]] = []
        self._snapshots: dict[int, Snapshot] = {}

    def _listen(self) -> None:
        self._before, self._after = self._handlers("on_"), self._handlers("after_")

    def _handlers(self, prefix: str) -> dict[str, list[tuple[Rule, Ask]]]:
        handlers: dict[str, list[tuple[Rule, Ask]]] = {}
        for kind in EVENT_KINDS:
            for rule in self._rules:
                if (method := getattr(rule, f"{prefix}{kind}", None)) is not None:
                    handlers.setdefault(kind, []).append((rule, method))
        return handlers

    # -- the stream ------------------------------------------------------------------------

    def put(self, seq: int, item: Event | Invocation | Unread | None) -> None:
        """Take an item for its place; None for one that stays empty or is an invocation's end."""
        if seq >= self._next:
            heapq.heappush(self._waiting, (seq, _Item(item)))
        elif seq >= self._first and isinstance(item, Invocation | Unread):
            self._lose(Unread(item.invocation_id, item.request_ids, reason=_LATE))

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot, to be compared when its event comes; before that event is put."""
        if snapshot.seq is not None:
            self._snapshots[snapshot.seq] = snapshot

    def go(self, *, whole: bool = False, until_s: float = math.inf) -> int:
        """Check what has its turn and return how much that was.

        With `whole`, over all gaps; no longer than until `until_s` of the monotonic clock.
        """
        done = 0
        while self._waiting and (whole or self._waiting[0][0] <= self._next):
            seq, item = heapq.heappop(self._waiting)
            self._next = max(self._next, seq + 1)
            self._check(item.value)
            done += 1
            if time.monotonic() >= until_s:
                break
        return done

    def go_over_gap(self) -> None:
        """Leave the place out that everything waits for.

        From then on only those rules are asked that do not need to know every event.
        """
        if self._waiting:
            self._next = max(self._next, self._waiting[0][0])
            self._bear_gap()

    def _bear_gap(self) -> None:
        self._gone_over = True
        self._rules = [rule for rule in self._rules if rule.bears_gaps]
        self._listen()

    @property
    def waiting(self) -> int:
        """How many items wait for their turn."""
        return len(self._waiting)

    @property
    def waits_for(self) -> int | None:
        """The place that must be filled before anything can go on; None if nothing waits."""
        return self._next if self._waiting else None

    def finish(self, *, to_the_end: bool = True) -> Findings:
        """Check what is left and, if what was recorded goes to the end, what it has come to."""
        self.go(whole=True)
        for rule in self._rules if to_the_end else ():
            for finding in rule.finish(self.world):
                self._add(rule, finding, None)
        for remark in [*self.world.remarks, *coverage_in_words(self._coverage)[1]]:
            self.findings.note(remark)
        return self.findings

    # -- checking --------------------------------------------------------------------------

    def _check(self, item: Event | Invocation | Unread | None) -> None:
        if isinstance(item, Event):
            self._event(item)
        elif isinstance(item, Unread):
            self._lose(item)
        elif item is not None:
            self._invocation(item)

    def _lose(self, invocation: Unread) -> None:
        if invocation.invocation_id in self._lost:
            return
        self._lost.add(invocation.invocation_id)
        self.world.lose(invocation)
        self.findings.unchecked.add(invocation.reason, invocation.request_ids)

    def _event(self, event: Event) -> None:
        if event.kind == "invocation_unfinished":
            self._lose(unlanded(event))
        elif event.kind == "unfinished":
            self._bear_gap()
            self.findings.note(
                "An operation of the cache had not ended when the recording did: what it changed"
                " is not known, and few rules were asked of what came after it."
            )
        elif event.kind == "cut":
            self.findings.note(
                cut_in_words(event.t_s, event.extras.get("late_s"), event.extras.get("request_ids"))
            )
        elif event.kind == "observer_error" and self._faults < _SHOWN_FAULTS:
            self._faults += 1
            self.findings.note(f"Watching failed at one point: {event.message}.")
        for rule, ask in self._before.get(event.kind, ()):
            for finding in ask(self.world, event):
                self._add(rule, finding, event)
        self.world.step(event)
        for rule, ask in self._after.get(event.kind, ()):
            for finding in ask(self.world, event):
                self._add(rule, finding, event)
        self.findings.events += 1
        if event.kind == "snapshot":
            self._snapshot(event)
        elif event.kind == "checksums":
            # What is not judged at the beginning may be later: only the last word counts.
            self._coverage = event
            self.findings.bytes_checked, _ = coverage_in_words(event)

    def _snapshot(self, event: Event) -> None:
        snapshot = self._snapshots.pop(event.seq, None)
        if snapshot is None or not snapshot.consistent:
            return
        for rule in self._rules:
            for finding in rule.look(self.world, snapshot):
                self._add(rule, finding, event)
        if self.world.under_way or self.world.given_up:
            return
        if self.world.strangers & self.world.held.keys():
            return
        for rule in self._rules:
            for finding in rule.rest(self.world, snapshot):
                self._add(rule, finding, event)

    def _invocation(self, invocation: Invocation) -> None:
        self.world.invocations_begun = invocation.invocation_id
        if invocation.phase == "prefill" and invocation.starts is not None:
            self.world.has_starts = True
        passage = Passage(self.world, invocation)
        self.world.seq = invocation.seq
        self.findings.invocations += 1
        self.findings.slots_read += int(passage.reads.sum())
        for rule in self._rules:
            for finding in rule.invocation(self.world, passage):
                self._add(rule, finding, invocation, passage)
            if isinstance(rule, SharedPages):
                self.findings.rewritten = rule.rewritten
        self._count_unchecked(passage)

    def _count_unchecked(self, passage: Passage) -> None:
        invocation, lost = (
            passage.invocation,
            [row for row, s in enumerate(passage.sequences) if s is None],
        )
        if lost:
            requests = [invocation.request_ids[row] for row in lost]
            known = [self.world.last_of.get(request) for request in requests]
            beams = len(set(requests)) < len(requests)
            reason = _BEAMS if beams else _BEFORE if None in known else _LOST
            self.findings.unchecked.add(reason, set(requests))
        elif self._gone_over:
            self.findings.unchecked.add(_PART, set(invocation.request_ids))

    def _add(
        self,
        rule: Rule,
        finding: Finding,
        at: Event | Invocation | None,
        passage: Passage | None = None,
    ) -> None:
        finding.rule, finding.sentence = rule.name, rule.sentence
        if isinstance(at, Invocation):
            finding.seq, finding.invocation_id, finding.t_s = at.seq, at.invocation_id, at.t_s
            finding.thread, finding.operation = at.thread, at.phase
        elif at is not None:
            finding.seq, finding.t_s, finding.thread = at.seq, at.t_s, at.thread
            finding.stack, finding.operation = at.stack, at.operation
        if self.findings.add(finding):
            finding.scene = scene_of(self.world, finding, passage)


class _Item:
    """Keeps the heap from comparing what stands at one place."""

    __slots__ = ("value",)

    def __init__(self, value: Event | Invocation | Unread | None) -> None:
        self.value = value

    def __lt__(self, other: object) -> bool:
        return False
