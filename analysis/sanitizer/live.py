"""The sanitizer beside a running engine: it follows the recorder on a thread of its own."""

from __future__ import annotations

import itertools
import math
import threading
import time
from types import TracebackType
from typing import Any

from analysis.recording.recorder import INVOCATION_FIELDS, Recorder
from analysis.sanitizer.checker import Checker
from analysis.sanitizer.stream import event_of, invocation_of
from analysis.sanitizer.world import Event, Invocation, Unread
from analysis.snapshots.snapshot import Snapshot

_SLICE_S, _PAUSE_S = 0.0005, 0.1
"""The checker's turn, and the engine's; a turn ends with the item that is under way."""
_ROWS = 100
_PATIENCE_S = 5.0
"""After how long it is said what the rest waits for: an invocation, or a thread that is held up."""
_MOST_WAITING = 200_000
"""Items that are kept for one that does not come; they take some 100 MB."""
_BEGUN = 3
"""Where an invocation under way keeps its place among the events."""
_SEQ, _END_SEQ, _IDS = (INVOCATION_FIELDS.index(name) for name in ("seq", "end_seq", "request_ids"))


class Follower:
    """Feeds a checker from a recorder, outside of the engine's way."""

    def __init__(
        self, recorder: Recorder, first: Snapshot, stride: int, context: int | None = None
    ) -> None:
        self.checker = Checker(first, stride, context=context)
        self._recorder = recorder
        self._taken = {"events": 0, "invocations": 0, "snapshots": 0, "skipped": 0}
        self._last = math.inf
        """The last place that is looked at; what comes later belongs to nobody who waits for it."""
        self._put_off: set[int] = set()
        """Invocations that were given up as not ended when the check did."""
        self._stuck_since: float | None = None
        self._stuck_at: int | None = None
        self._stop = threading.Event()
        self._checking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="cachelab-sanitize", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=_PATIENCE_S)

    def _run(self) -> None:
        seen, pause_s = -1, _PAUSE_S
        while not self._stop.wait(pause_s):
            told = len(self._recorder.events)
            # While the engine works it has the interpreter's lock to itself for all but a
            # moment now and then; what lags behind is checked when it rests.
            pause_s, seen = (_PAUSE_S if told != seen else 0.0), told
            if not self.step(time.monotonic() + _SLICE_S):
                pause_s = _PAUSE_S

    def step(self, until_s: float = math.inf) -> int:
        """Check what has come since the last time; return how many items that was."""
        with self._checking:
            try:
                done = self.checker.go(until_s=until_s)
                if time.monotonic() < until_s:
                    self._take(_ROWS)
                    done += self.checker.go(until_s=until_s)
                self._mind_gaps(done)
            except Exception as error:
                self.checker.findings.note(f"The check failed: {type(error).__name__}: {error}.")
                return 0
            return done

    def finish(self) -> None:
        """Check all that is left."""
        with self._checking:
            recorder = self._recorder
            last, under_way = _last_of(recorder), list(recorder.under_way.values())
            self._last = max([last, *(invocation[_BEGUN] for invocation in under_way)])
            self._take()
            # What is still in the air keeps nothing waiting any more.
            landed = {row[0] for row in recorder.invocations[: self._taken["invocations"]]}
            for invocation in under_way:
                if invocation[0] not in landed:
                    self._put_off.add(invocation[0])
                    self.checker.put(invocation[_BEGUN], _unlanded(invocation))
            self._go_to_the_end()
            full = bool(recorder.dropped["events"] or recorder.dropped["invocations"])
            self.checker.finish(to_the_end=not full)
            self.checker.findings.waits = None
            unchecked, reason = self.checker.findings.unchecked, "the recording was full"
            for request_ids in recorder.unkept:
                unchecked.add(reason, request_ids)
            if nameless := recorder.dropped["invocations"] - len(recorder.unkept):
                unchecked.add(reason, count=nameless)
            if full:
                self.checker.findings.note(
                    "The recording was full: what came later was not checked."
                )

    def _go_to_the_end(self) -> None:
        """Check all that is left; a place that is still empty will not be filled any more."""
        self.checker.go()
        while self.checker.waits_for is not None:
            if self._fills_gap():
                continue
            self.checker.findings.note(
                "An operation of the cache had not ended: what it changed is not known, and few"
                " rules were asked of what came after it."
            )
            self.checker.go_over_gap()
            self.checker.go()

    def _fills_gap(self) -> bool:
        """Take all that the recorder has by now, and tell whether the check goes on with it.

        What stands at an empty place may have come while rows of another kind were read.
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
            # Between events that were dropped an invocation means nothing.
            last = recorder.events[-1][0] if recorder.events else -1
            late = [row for row in invocations if row[_SEQ] >= last]
            invocations = [row for row in invocations if row[_SEQ] < last]
            for row in late:
                self.checker.findings.unchecked.add("the recording was full", row[_IDS])
        for row in invocations:
            self._put(row[_SEQ], None if row[0] in self._put_off else invocation_of(row))
            if row[_END_SEQ] < last:
                self._put(row[_END_SEQ], None)
        for seq in self._new("skipped", recorder.skipped, most):
            self._put(seq, None)

    def _put(self, seq: int, item: Event | Invocation | Unread | None) -> None:
        if seq <= self._last:
            self.checker.put(seq, item)

    def _new(self, name: str, rows: list[Any], most: int | None) -> list[Any]:
        start = self._taken[name]
        new = rows[start : None if most is None else start + most]
        self._taken[name] += len(new)
        return new

    def _mind_gaps(self, done: int) -> None:
        """Wait for a place that is not filled as long as the rest can be kept; say so meanwhile.

        Whatever fills it later is checked in its order, and all that came after it, too.
        """
        now, gap, findings = time.monotonic(), self.checker.waits_for, self.checker.findings
        if gap is None or done or gap != self._stuck_at:
            self._stuck_at, self._stuck_since, findings.waits = gap, now, None
            return
        invocation = next(
            (f for f in list(self._recorder.under_way.values()) if f[_BEGUN] == gap), None
        )
        if self._stuck_since is not None and now - self._stuck_since > _PATIENCE_S:
            what = (
                "an operation of the cache" if invocation is None else f"invocation {invocation[0]}"
            )
            findings.waits = (
                f"The check waits for the end of {what}, at place {gap}: {self.checker.waiting}"
                " later steps are kept until then."
            )
        if self.checker.waiting > _MOST_WAITING and not self._fills_gap():
            if invocation is not None:
                reason = "not ended while more waited for it than is kept"
                self.checker.put(gap, Unread(invocation[0], list(invocation[2]), reason=reason))
            else:
                findings.note(
                    f"Place {gap} of the recording was not filled while {_MOST_WAITING} steps"
                    " waited for it: from there on few rules were asked."
                )
                self.checker.go_over_gap()


def _last_of(recorder: Recorder) -> int:
    """Return the last place at which anything was recorded so far.

    All before it was recorded, is under way, or is about to be told.
    """
    events = (row[0] for row in recorder.events)
    invocations = (row[_END_SEQ] for row in recorder.invocations)
    return max(itertools.chain(events, invocations, recorder.skipped), default=-1)


def _unlanded(invocation: tuple[Any, ...]) -> Unread:
    _, phase, request_ids = invocation[:3]
    reason = "not ended when the check did"
    return Unread(invocation[0], list(request_ids), phase, reason, landed=False)
