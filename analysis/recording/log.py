"""Appends events on the engine's own threads, up to a bound. Hot path."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from analysis.core.errors import whole_number
from analysis.engine.engine import Engine
from analysis.recording.checksums import SEEN, Checksums
from analysis.recording.sizes import LONG, MOST_BYTES, event_bytes
from analysis.recording.stacks import current_stack
from analysis.runs.schema import EVENT_EXTRAS
from analysis.shortfin.capture import ObserverWarning
from analysis.shortfin.locks import Locks
from analysis.snapshots.snapshot import Snapshot

# The fields of a recorded event: columns of the table `events`, except `t_ns`, which becomes `t_s`,
# and `extras`, a dictionary of further columns or None.
EVENT_FIELDS = (
    "seq", "t_ns", "thread", "request_id", "operation", "kind", "pages", "free_pages", "node",
    "parent", "ref_before", "ref_count", "tokens_hit", "tokens_missed", "value", "digest", "extras",
    "locks", "stack",
)  # fmt: skip
_SHOWN_FAULTS = 3
MOST_NAMED = 1000
"""Most errors of the recording, and most dropped invocations, that are kept; others are counted."""
_EXTRAS = frozenset(EVENT_EXTRAS)
_NEAR = 64
"""The event with the highest `seq` is among this number of last events."""
_LOCKED = frozenset(
    ["acquire", "free", "create", "node_overwritten", "unlink", "reference", "leaf_added",
     "leaf_removed", "duplicate"]
)  # fmt: skip
"""Event kinds with the column `locks`: those that change shared state."""
_STACKLESS = frozenset(["chosen", "token", "first_token", "answered"])
"""Event kinds without a stack: they occur at every token, at one place of the engine."""


class _Here(threading.local):
    """The current operations of one thread."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.operations: list[tuple[str | None, str | None]] = []
        self.marks: list[int] = []
        """Number of locks taken at the start of each operation."""
        self.emitted = 0
        """Number of events of the current operation."""
        self.version: list[int] | None = None


class EventLog:
    """Events ordered by `seq`, with the operations that they belong to.

    It takes no lock: appending to a list and drawing from a counter are atomic in the interpreter.
    Each thread that uses the cache has a version number, which is odd during an operation. This
    shows whether a snapshot was taken between operations.
    """

    def __init__(
        self, engine: Engine, *, stacks: bool, max_events: int, max_bytes: int = MOST_BYTES
    ) -> None:
        self.engine = engine
        self.stacks = stacks
        self.max_events = max_events
        self.max_bytes = whole_number(max_bytes, "max_bytes", 1, 1 << 50)
        self.bytes = 0
        """Estimated bytes of arrays, frames and snapshots, in addition to the rows of events."""
        self._room = max_events
        """Most rows of events; set to the current number when `max_bytes` is reached."""
        self._last_invocation = sys.maxsize
        """The last invocation to keep: one under way when the recording became full is kept."""
        self.events: list[tuple[Any, ...]] = []
        self.invocations: list[tuple[Any, ...]] = []
        self.snapshots: list[Snapshot] = []
        self.under_way: dict[int, tuple[Any, ...]] = {}
        """Unfinished invocations."""
        self.skipped: list[int] = []
        """Unused sequence numbers between kept events: reserved but unused, or dropped.

        At most two for each event; beyond that the recording counts as full.
        """
        self.checksums: Checksums | None = None
        """Compares the bytes of pages; None if not wanted."""
        self.dropped = {"events": 0, "invocations": 0, "snapshots": 0, "faults": 0}
        self.faults: list[str] = []
        """The first errors of the recording."""
        self.closed = False
        """Whether the recording has ended; nothing more is kept."""
        self.locks: Locks | None = None
        """The locks that each thread holds; set by the probe."""
        self._open: dict[int, tuple[int, str | None, str | None]] = {}
        """Reserved sequence numbers without an event: time (ns), request and operation."""
        self._seq = itertools.count()
        self._started_ns = time.monotonic_ns() - round(engine.clock_s() * 1e9)
        self._here = _Here()
        self._versions: list[list[int]] = []

    def operation_failed(self) -> None:
        """Handle an error of an outermost operation."""

    def begin(self, operation: str | None, request_id: str | None) -> None:
        """Begin an operation on this thread; events until its end are assigned to it."""
        here = self._here
        if here.version is None:
            here.version = [0]
            self._versions.append(here.version)
        if not here.operations:
            here.version[0] += 1
            here.emitted = 0
        elif request_id is None:
            request_id = here.operations[-1][1]
        # The outermost name is kept: an eviction during an acquisition is part of the acquisition.
        if here.operations and here.operations[-1][0] is not None:
            operation = here.operations[-1][0]
        here.operations.append((operation, request_id))
        if self.locks is not None:
            here.marks.append(self.locks.begin(outermost=len(here.operations) == 1))

    def end(self, error: BaseException | None) -> None:
        """End this thread's last operation; operations without events are not recorded."""
        here = self._here
        if error is not None or here.emitted:
            operation, _ = here.operations[-1]
            outer = here.operations[-2][0] if len(here.operations) > 1 else None
            if operation is not None and outer is None:
                if error is not None:
                    self.event("failed", message=f"{type(error).__name__}: {error}")
                else:
                    self.event("operation")
        here.operations.pop()
        if here.marks:
            here.marks.pop()
        if not here.operations and here.version is not None:
            here.version[0] += 1
            if self.locks is not None:
                self.locks.end()
            if error is not None:
                self.operation_failed()

    def mark(self) -> tuple[int, ...] | None:
        """Return a value that is equal until an operation begins; None during an operation."""
        versions = tuple(version[0] for version in self._versions)
        return None if any(version % 2 for version in versions) else versions

    def reserve(self) -> tuple[int, int]:
        """Reserve and return a sequence number and the time, for a later event."""
        place = self._place()
        operation, owner = self._here.operations[-1] if self._here.operations else (None, None)
        self._open[place[0]] = place[1], owner, operation
        return place

    def _place(self) -> tuple[int, int]:
        return next(self._seq), time.monotonic_ns() - self._started_ns

    def unused(self, place: tuple[int, int]) -> None:
        """Release a reserved sequence number."""
        if self._open.pop(place[0], None) is not None:
            self._skip(place[0])

    def _skip(self, place: int) -> None:
        """Mark a sequence number as unused."""
        if self.closed:
            return
        if self.dropped["events"] and place > max(
            (row[0] for row in self.events[-_NEAR:]), default=-1
        ):
            return  # nothing after it is kept, so nothing waits for it
        if len(self.skipped) < 2 * self.max_events:
            self.skipped.append(place)
        else:
            self._overflow("events")

    def event(
        self,
        kind: str,
        *,
        place: tuple[int, int] | None = None,
        request_id: str | None = None,
        operation: str | None = None,
        pages: Sequence[int] | None = None,
        free_pages: int | None = None,
        node: int | None = None,
        parent: int | None = None,
        ref_before: int | None = None,
        ref_count: int | None = None,
        tokens_hit: int | None = None,
        tokens_missed: int | None = None,
        value: int | None = None,
        digest: int | bytes | None = None,
        **extras: Any,
    ) -> None:
        """Record an event, with the current thread, operation and its request.

        `extras` are further columns of the table `events`; their values must not change later.
        """
        if extras and not extras.keys() <= _EXTRAS:
            raise TypeError(f"An event has no field {', '.join(extras.keys() - _EXTRAS)}.")
        if (place is not None and self._open.pop(place[0], None) is None) or self.closed:
            return  # the recording has ended
        # Events after a dropped one are useless.
        if len(self.events) >= self._room or self.dropped["events"]:
            self._overflow("events")
            if place is not None:
                self._skip(place[0])
            return
        here = self._here
        here.emitted += 1
        operations = here.operations
        current, owner = operations[-1] if operations else (None, None)
        if place is None:
            seq, t_ns = self._place()
        else:
            seq, t_ns = place
        stack = current_stack() if self.stacks and kind not in _STACKLESS else None
        locks = None
        if self.locks is not None and kind in _LOCKED:
            locks = self.locks.names(here.marks[-1] if here.marks else None)
        self.events.append(
            (seq, t_ns, here.name or self._name(), request_id or owner, operation or current, kind,
             pages, free_pages, node, parent, ref_before, ref_count, tokens_hit, tokens_missed,
             value, digest, extras or None, locks, stack)
        )  # fmt: skip
        if stack or extras or (pages and len(pages) > LONG):
            self._weigh(event_bytes(stack, extras, pages))
        if pages and kind in SEEN and (checksums := self.checksums) is not None:
            self.of_bytes(checksums.seen, kind, pages, request_id or owner)

    def at_token(
        self, kind: str, request_id: str, value: int | None, digest: int | bytes | None
    ) -> None:
        """Record an event that occurs at every token. Hot path."""
        here = self._here
        events, full = self.events, self.dropped["events"]
        if here.operations or full or self.closed or len(events) >= self._room:
            self.event(kind, request_id=request_id, value=value, digest=digest)
            return
        events.append(
            (next(self._seq), time.monotonic_ns() - self._started_ns, here.name or self._name(),
             request_id, None, kind, None, None, None, None, None, None, None, None, value, digest,
             None, None, None)
        )  # fmt: skip

    def _name(self) -> str:
        """Return the name of the engine's worker on this thread, else the thread's name."""
        try:
            worker = str(asyncio.get_running_loop()._worker)  # type: ignore[attr-defined]
            name = worker.partition("'")[2].rpartition("'")[0].partition("-")[2] or worker
        except (RuntimeError, AttributeError):
            # Not cached: an engine's thread has no worker before its loop runs.
            return threading.current_thread().name
        self._here.name = name
        return name

    def of_bytes(self, look: Callable[..., None], *args: Any) -> None:
        """Call a function that reads pages; an error in it ends the byte checks."""
        try:
            look(*args)
        except Exception as error:
            self.fault(error)
            self._no_more_checksums(f"{type(error).__name__}: {error}")

    def read_all_bytes(self) -> None:
        """Read all pages once more, and record the coverage of the byte checks."""
        if (checksums := self.checksums) is not None:
            self.of_bytes(checksums.read_all)
        if (checksums := self.checksums) is not None:
            self.event("checksums", coverage=checksums.coverage)

    def _no_more_checksums(self, reason: str) -> None:
        checksums, self.checksums = self.checksums, None
        if checksums is not None:
            checksums.close()
            self.event("checksums", message=reason)

    def fault(self, error: Exception) -> None:
        """Record an error of the recording as an event, and show the first few as warnings."""
        try:
            text = f"{type(error).__name__}: {error}"
            if len(self.faults) >= MOST_NAMED:
                self._overflow("faults")
            else:
                self.faults.append(text)
                if len(self.faults) <= _SHOWN_FAULTS:
                    _warn(f"A part of the engine's work could not be recorded: {text}")
            self.event("observer_error", message=text)
        except Exception:  # for example without memory; must not reach the engine
            self.dropped["faults"] += 1

    def _weigh(self, count: int) -> None:
        """Count kept bytes; above `max_bytes`, nothing more is kept.

        The count is approximate, because two threads may update it at the same time.
        """
        self.bytes += count
        if self.bytes > self.max_bytes and self._last_invocation == sys.maxsize:
            self._last_invocation = max([*self.under_way, -1])
            self._room = min(self._room, len(self.events))

    def _overflow(self, what: str) -> None:
        self.dropped[what] += 1
        if self.dropped[what] == 1:
            kept: list[Any] = self.faults if what == "faults" else getattr(self, what)
            bound = len(kept)
            why = f" ({self.max_bytes} bytes)" if self.bytes > self.max_bytes else ""
            _warn(
                f"The recording is full{why}: it keeps the first {bound} {what}, and only counts"
                " later ones."
            )


def _warn(message: str) -> None:
    """Show a warning; it must not reach the engine, even if warnings are errors."""
    with contextlib.suppress(ObserverWarning):
        warnings.warn(message, ObserverWarning, stacklevel=3)
