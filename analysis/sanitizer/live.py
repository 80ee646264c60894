"""The sanitizer beside a running engine: it follows the recorder on a thread of its own."""

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
"""The checker's turn, and the engine's; a turn ends with the item under way."""
_ROWS = 100
_PATIENCE_S = 5.0
"""Delay after which the findings say what the check waits for."""
_MOST_WAITING = 200_000
"""Items that are kept for a missing one; they take some 100 MB."""
_BEGUN = 3
"""Field of an invocation under way: its place among the events."""
_SEQ, _END_SEQ, _IDS = (INVOCATION_FIELDS.index(name) for name in ("seq", "end_seq", "request_ids"))


class Follower:
    """Feeds a checker from a recorder, on a thread that leaves most of the time to the engine."""

    def __init__(
        self, recorder: Recorder, first: Snapshot, stride: int, context_length: int | None = None
    ) -> None:
        self.checker = Checker(first, stride, context_length=context_length)
        self._recorder = recorder
        self._taken = {"events": 0, "invocations": 0, "snapshots": 0, "skipped": 0}
        self._last = math.inf
        """The last place that is checked."""
        self._given_up: set[int] = set()
        """Invocations that had not ended when the check did."""
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
        # While the engine works, the check takes the interpreter's lock only for short slices.
        return 0.0 if done and self._seen == before else _PAUSE_S

    def step(self, until_s: float = math.inf) -> int:
        """Check what was recorded since the last call; return the number of items."""
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
        """Check all that is left."""
        with self._checking:
            recorder, findings = self._recorder, self.checker.findings
            last, under_way = _last_of(recorder), list(recorder.under_way.values())
            self._last = max([last, *(invocation[_BEGUN] for invocation in under_way)])
            self._take()
            # Nothing waits any more for an invocation that is still under way.
            finished = {row[0] for row in recorder.invocations[: self._taken["invocations"]]}
            for invocation in under_way:
                if invocation[0] not in finished:
                    self._given_up.add(invocation[0])
                    number, phase, ids = invocation[:3]
                    reason = "not ended when the check did"
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
        """Check all that is left; a place that is still empty stays empty."""
        self.checker.go()
        while self.checker.waits_for is not None:
            if self._fills_gap():
                continue
            self.checker.findings.note(
                "An operation of the cache had not ended: what it changed is unknown, and only some"
                " rules were checked after it."
            )
            self.checker.skip_gap()
            self.checker.go()

    def _fills_gap(self) -> bool:
        """Take what the recorder has by now, and return whether the check goes on with it.

        The item for an empty place may come while rows of another kind are taken.
        """
        self._take()
        return self.checker.go() > 0

    def _take(self, most: int | None = None) -> None:
        """Take what the recorder has, of each kind at most so many rows."""
        recorder, checker = self._recorder, self.checker
        events = [event_of(row) for row in self._new("events", recorder.events, most)]
        for snapshot in self._new("snapshots", recorder.snapshots, None):
            checker.put_snapshot(snapshot)
        for event in events:
            self._put(event.seq, event)
        invocations, last = self._new("invocations", recorder.invocations, most), math.inf
        if recorder.dropped["events"]:
            # Between dropped events an invocation cannot be checked.
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
        """Wait for a missing item as long as the later ones can be kept; note it meanwhile."""
        now, gap, findings = time.monotonic(), self.checker.waits_for, self.checker.findings
        if gap is None or done or gap != self._stuck_at:
            self._stuck_at, self._stuck_since, findings.waits = gap, now, None
            return
        under_way = list(self._recorder.under_way.values())
        invocation = next((i for i in under_way if i[_BEGUN] == gap), None)
        what = "an operation of the cache" if invocation is None else f"invocation {invocation[0]}"
        if self._stuck_since is not None and now - self._stuck_since > _PATIENCE_S:
            findings.waits = (
                f"The check waits for the end of {what}, at place {gap}: {self.checker.waiting}"
                " later steps are kept until then."
            )
        if self.checker.waiting > _MOST_WAITING and not self._fills_gap():
            if invocation is not None:
                reason = "not ended while more waited for it than is kept"
                item = UnknownInvocation(invocation[0], list(invocation[2]), reason=reason)
                self.checker.put(gap, item)
            else:
                findings.note(
                    f"Place {gap} of the recording was empty while {_MOST_WAITING} steps waited for"
                    " it: only some rules were checked after it."
                )
                self.checker.skip_gap()


def _last_of(recorder: Recorder) -> int:
    """Return the last recorded place; all before it are recorded, under way or about to be."""
    events = (row[0] for row in recorder.events)
    invocations = (row[_END_SEQ] for row in recorder.invocations)
    return max(itertools.chain(events, invocations, recorder.skipped), default=-1)
