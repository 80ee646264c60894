"""The sanitizer beside a running engine: it follows the recorder on a thread of its own."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from analysis.observe.recorder import FLIGHT_FIELDS, Recorder
from analysis.sanitize.checker import Checker
from analysis.sanitize.stream import event_of, flight_of
from analysis.snapshot import Snapshot

_EVERY_S = 0.05
_PATIENCE_S = 5.0
"""How long the rest waits for a flight that does not land, or a thread that is held up."""
_SEQ, _END_SEQ = FLIGHT_FIELDS.index("seq"), FLIGHT_FIELDS.index("end_seq")


class Follower:
    """Feeds a checker from a recorder, some twenty times a second, outside of the engine's way."""

    def __init__(self, recorder: Recorder, first: Snapshot, stride: int) -> None:
        self.checker = Checker(first, stride)
        self._recorder = recorder
        self._taken = {"events": 0, "flights": 0, "snapshots": 0, "skipped": 0}
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
        while not self._stop.wait(_EVERY_S):
            self.step()

    def step(self) -> int:
        """Check what has come since the last time; return how many items that was."""
        with self._checking:
            try:
                self._take()
                done = self.checker.go()
                self._mind_gaps(done)
            except Exception as error:
                self.checker.findings.note(f"The check failed: {type(error).__name__}: {error}.")
                return 0
            return done

    def finish(self) -> None:
        """Check all that is left."""
        with self._checking:
            self._take()
            self.checker.finish()
            recorder = self._recorder
            if any(recorder.dropped.values()):
                self.checker.findings.note(
                    "The recording was full: what came later was not checked."
                )
            for fault in recorder.faults[:3]:
                self.checker.findings.note(f"Watching failed at one point: {fault}.")

    def _take(self) -> None:
        recorder, checker, taken = self._recorder, self.checker, self._taken
        for snapshot in recorder.snapshots[taken["snapshots"] :]:
            checker.put_snapshot(snapshot)
            taken["snapshots"] += 1
        events = recorder.events[taken["events"] :]
        taken["events"] += len(events)
        for row in events:
            event = event_of(row)
            checker.put(event.seq, event)
        flights = recorder.flights[taken["flights"] :]
        taken["flights"] += len(flights)
        for row in flights:
            checker.put(row[_SEQ], flight_of(row))
            checker.put(row[_END_SEQ], None)
        skipped = getattr(recorder, "skipped", [])[taken["skipped"] :]
        taken["skipped"] += len(skipped)
        for seq in skipped:
            checker.put(seq, None)

    def _mind_gaps(self, done: int) -> None:
        """Go on over a gap that nobody fills; the recorder may be between two steps."""
        now, gap = time.monotonic(), self.checker.waits_for
        if gap is None or done or gap != self._stuck_at:
            self._stuck_at, self._stuck_since = gap, now
        elif self._stuck_since is not None and now - self._stuck_since > _PATIENCE_S:
            self.checker.findings.note(
                f"Place {gap} of the recording was not filled within {_PATIENCE_S:g} s, as by a"
                " flight that does not land; it was left out."
            )
            self.checker.go_over_gap()
