"""The live sanitizer: checks a recording on its own thread while the engine runs."""

from __future__ import annotations

import itertools
import math
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

from analysis.core.background import repeated
from analysis.recording.recorder import INVOCATION_FIELDS, Recorder
from analysis.sanitizer.checker import FULL, Checker
from analysis.sanitizer.trace import Item, UnknownInvocation, event_of, invocation_of
from analysis.snapshots.snapshot import Snapshot

_SLICE_S, _PAUSE_S = 0.0005, 0.1
"""Longest slice of checking, and the pause after it when nothing is left, in seconds."""
_ROWS = 100
_PATIENCE_S = 5.0
"""Seconds after which the findings mention what the check waits for."""
_MOST_WAITING = 200_000
"""Most items queued behind a missing one, about 100 MB."""
_BEGUN = 3
"""Index of `seq` in an unfinished invocation."""
_SEQ, _END_SEQ, _IDS = (INVOCATION_FIELDS.index(name) for name in ("seq", "end_seq", "request_ids"))


class Follower:
    """Feeds a checker from a recorder, on a thread that checks in short slices."""

    def __init__(
        self, recorder: Recorder, first: Snapshot, stride: int, context_length: int | None = None
    ) -> None:
        self.checker = Checker(first, stride, context_length=context_length)
        self._recorder = recorder
        self._taken = {"events": 0, "invocations": 0, "snapshots": 0, "skipped": 0}
        self._last = math.inf
        """Last `seq` that is checked."""
        self._given_up: set[int] = set()
        """Invocations that had not finished at the end of the check."""
        self._stuck_since: float | None = None
        self._stuck_at: int | None = None
        self._seen = -1
        """Events that were recorded at the last turn."""
        self._checking = threading.Lock()

    def following(self) -> AbstractContextManager[None]:
        """Check on a thread of its own as long as the block lasts."""
        return repeated(self._turn, "cachelab-sanitize", _PAUSE_S, patience_s=_PATIENCE_S)

    def _turn(self) -> float:
        """Check for a short time; return the seconds until the next turn."""
        before, self._seen = self._seen, len(self._recorder.events)
        done = self.step(time.monotonic() + _SLICE_S)
        # While the engine works, hold the interpreter's lock only for short slices.
        return 0.0 if done and self._seen == before else _PAUSE_S

    def step(self, until_s: float = math.inf) -> int:
        """Check new items, and return how many were checked."""
        with self._checking:
            try:
                done = self.checker.go(until_s=until_s)
                if time.monotonic() < until_s:
                    self._take(_ROWS)
                    done += self.checker.go(until_s=until_s)
                self._watch_gap(done)
            except Exception as error:
                self.checker.findings.note(f"The check failed: {type(error).__name__}: {error}.")
                return 0
            return done

    def finish(self) -> None:
        """Check all remaining items and the final state."""
        with self._checking:
            recorder, findings = self._recorder, self.checker.findings
            last, under_way = _last_of(recorder), list(recorder.under_way.values())
            self._last = max([last, *(invocation[_BEGUN] for invocation in under_way)])
            self._take()
            # Do not wait for invocations that are still under way.
            finished = {row[0] for row in recorder.invocations[: self._taken["invocations"]]}
            for invocation in under_way:
                if invocation[0] not in finished:
                    self._given_up.add(invocation[0])
                    number, phase, ids = invocation[:3]
                    reason = "not finished at the end of the check"
                    item = UnknownInvocation(number, list(ids), phase, reason, finished=False)
                    self.checker.put(invocation[_BEGUN], item)
            self._go_to_the_end()
            full = bool(recorder.dropped["events"] or recorder.dropped["invocations"])
            self.checker.finish(full=full)
            findings.waits = None
            for request_ids in recorder.unkept:
                findings.unchecked.add(FULL, request_ids)
            if nameless := recorder.dropped["invocations"] - len(recorder.unkept):
                findings.unchecked.add(FULL, count=nameless)

    def _go_to_the_end(self) -> None:
        """Check all remaining items, and skip missing ones."""
        self.checker.go()
        while self.checker.waits_for is not None:
            if self._fills_gap():
                continue
            self.checker.findings.note(
                "An operation of the cache did not end. Its changes are unknown, so only some rules"
                " were checked after it."
            )
            self.checker.skip_gap()
            self.checker.go()

    def _fills_gap(self) -> bool:
        """Take new items from the recorder, and return whether any could be checked."""
        self._take()
        return self.checker.go() > 0

    def _take(self, most: int | None = None) -> None:
        """Take new items from the recorder, at most `most` rows of each kind."""
        recorder, checker = self._recorder, self.checker
        events = [event_of(row) for row in self._new("events", recorder.events, most)]
        for snapshot in self._new("snapshots", recorder.snapshots, None):
            checker.put_snapshot(snapshot)
        for event in events:
            self._put(event.seq, event)
        invocations, last = self._new("invocations", recorder.invocations, most), math.inf
        if recorder.dropped["events"]:
            # An invocation cannot be checked if events before it were dropped.
            last = recorder.events[-1][0] if recorder.events else -1
            for row in invocations:
                if row[_SEQ] >= last:
                    checker.findings.unchecked.add(FULL, row[_IDS])
            invocations = [row for row in invocations if row[_SEQ] < last]
        for row in invocations:
            self._put(row[_SEQ], None if row[0] in self._given_up else invocation_of(row))
            if row[_END_SEQ] < last:
                self._put(row[_END_SEQ], None)
        for seq in self._new("skipped", recorder.skipped, most):
            self._put(seq, None)

    def _put(self, seq: int, item: Item | None) -> None:
        if seq <= self._last:
            self.checker.put(seq, item)

    def _new(self, name: str, rows: list[Any], most: int | None) -> list[Any]:
        start = self._taken[name]
        new = rows[start : None if most is None else start + most]
        self._taken[name] += len(new)
        return new

    def _watch_gap(self, done: int) -> None:
        """Note a missing item that delays the check, and skip it when the queue is full."""
        now, gap, findings = time.monotonic(), self.checker.waits_for, self.checker.findings
        if gap is None or done or gap != self._stuck_at:
            self._stuck_at, self._stuck_since, findings.waits = gap, now, None
            return
        under_way = list(self._recorder.under_way.values())
        invocation = next((i for i in under_way if i[_BEGUN] == gap), None)
        what = "an operation of the cache" if invocation is None else f"invocation {invocation[0]}"
        if self._stuck_since is not None and now - self._stuck_since > _PATIENCE_S:
            findings.waits = (
                f"The check waits for the end of {what} (event {gap}), with"
                f" {self.checker.waiting} later steps in the queue."
            )
        if self.checker.waiting > _MOST_WAITING and not self._fills_gap():
            if invocation is not None:
                reason = "not finished before the queue was full"
                item = UnknownInvocation(invocation[0], list(invocation[2]), reason=reason)
                self.checker.put(gap, item)
            else:
                findings.note(
                    f"Event {gap} was missing and {_MOST_WAITING} later steps were in the queue:"
                    " only some rules were checked after it."
                )
                self.checker.skip_gap()


def _last_of(recorder: Recorder) -> int:
    """Return the last `seq` in a recording."""
    events = (row[0] for row in recorder.events)
    invocations = (row[_END_SEQ] for row in recorder.invocations)
    return max(itertools.chain(events, invocations, recorder.skipped), default=-1)
