"""Takes note of what the hooks tell, on the engine's own threads: quick, and never in its way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any

from analysis.core.errors import whole_number
from analysis.engine.cache import read_between
from analysis.engine.completion import Completion, EngineDeath
from analysis.engine.engine import Engine
from analysis.recording.checksums import SEEN, Checksums
from analysis.runs.schema import EVENT_EXTRAS
from analysis.shortfin.capture import ObserverWarning
from analysis.shortfin.locks import Locks
from analysis.shortfin.scores import Scores, Top
from analysis.snapshots.snapshot import CacheState, Snapshot

# The order of a recorded event's fields: columns of the table `events`, but for `t_ns`, which
# becomes `t_s`, and `extras`, the other columns that the event has, or None.
EVENT_FIELDS = (
    "seq", "t_ns", "thread", "request_id", "operation", "kind", "pages", "free_pages", "node",
    "parent", "ref_before", "ref_count", "tokens_hit", "tokens_missed", "value", "digest", "extras",
    "locks", "stack",
)  # fmt: skip
INVOCATION_FIELDS = (
    "invocation_id", "phase", "rows", "batch_size", "request_ids", "tokens", "seq_lens",
    "start_positions", "block_tables", "seq", "end_seq", "thread", "t_s", "duration_s", "error",
    "scores", "results", "changed",
)  # fmt: skip
_IDS = INVOCATION_FIELDS.index("request_ids")
_SNAPSHOT_WAIT_S = 0.02
"""How long an automatic snapshot waits for a moment between two operations."""
_SHOWN_FAULTS, _SHOWN_FRAMES = 3, 12
_MOST_NAMED = 1000
"""How many faults of the watching, and dropped invocations, are kept in full; the rest is counted.
"""
_ARRAYS = ("tokens", "block_tables")
"""Arguments of an invocation that may be large."""
MOST_BYTES = 1 << 30
"""What a recording keeps beside the rows of its events unless told otherwise.

500,000 events with the engine's frames take some 0.5 GiB, as many invocations of the counting model
0.3: what is larger, such as scores or the block tables of a large model, ends it earlier.
"""
_LONG = 128
"""Lists and texts of events that are longer are counted for their bytes."""
_EXTRAS = frozenset(EVENT_EXTRAS)
_WORD, _FRAME, _INVOCATION, _NODE, _NUMBERS = 8, 96, 600, 200, 72
"""Bytes of an element, a frame, an invocation, a node of a snapshot, and a token with its
logarithm.
"""
_NEAR = 64
"""Among how many of the last events the one with the last place is."""
_LOCKED = frozenset(
    ["acquire", "free", "create", "node_overwritten", "unlink", "reference", "leaf_added",
     "leaf_removed", "duplicate"]
)  # fmt: skip
"""Kinds of events that tell under which locks they happened: those that change what is shared."""
_STACKLESS = frozenset(["chosen", "token", "first_token", "answered"])
"""Kinds of events that happen at one place of the engine only, and at every token."""


class _Here(threading.local):
    """What one thread is doing."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.operations: list[tuple[str | None, str | None]] = []
        self.marks: list[int] = []
        """How many locks had been taken when each of them began."""
        self.told = 0
        """Events of the operation under way."""
        self.version: list[int] | None = None


class Recorder:
    """A CacheObserver and Listener that keeps what it is told, up to a bound.

    It takes no lock: lists are appended to and counters drawn in single steps of the interpreter.
    Each thread that does something with the cache has a version of its own, odd while an operation
    is under way there, so that a snapshot can tell whether it was taken between operations.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        snapshots: bool,
        stacks: bool,
        max_events: int,
        max_snapshots: int,
        likeliest: int = 0,
        verifies: bool = False,
        max_bytes: int = MOST_BYTES,
    ) -> None:
        self.engine = engine
        self.automatic = snapshots
        self.stacks = stacks
        self.max_events, self.max_snapshots = max_events, max_snapshots
        self.max_bytes = whole_number(max_bytes, "max_bytes", 1, 1 << 50)
        self.bytes = 0
        """What is kept beside the rows of events takes about so much: arrays, frames, snapshots."""
        self._room = max_events
        """Rows of events that are kept; those that were there when the bytes were used up."""
        self._last_invocation = sys.maxsize
        """The last invocation that is kept: one that was under way then is, as its tokens may be.
        """
        self.events: list[tuple[Any, ...]] = []
        self.invocations: list[tuple[Any, ...]] = []
        self.snapshots: list[Snapshot] = []
        self.under_way: dict[int, tuple[Any, ...]] = {}
        """Invocations that have begun and not ended."""
        self.skipped: list[int] = []
        """Places between kept events that stay empty: reserved for nothing, or of what was dropped.

        At most two for each event that may be kept; beyond that the recording counts as full.
        """
        self.check_contents = False
        """Whether invocations and copies have the pages that they used looked into."""
        self.checksums: Checksums | None = None
        """What looks at the bytes of pages, while somebody wants it."""
        self.likeliest = likeliest
        """How many of the likeliest next tokens are noted for each row of an invocation."""
        self.verifies = verifies
        """Whether arguments are compared with what they were filled with, and results followed."""
        self.dropped = {"events": 0, "invocations": 0, "snapshots": 0, "faults": 0}
        self.unkept: list[list[str]] = []
        """The requests of each of the first invocations that were dropped; `dropped` counts all."""
        self.faults: list[str] = []
        """The first errors of the watching itself."""
        self.closed = False
        """Whether the recording has ended, and keeps nothing any more."""
        self._open: dict[int, tuple[int, str | None, str | None]] = {}
        """Places reserved and not filled yet: when (ns), for which request and operation."""
        self._given_up: set[str] = set()
        """Requests that their clients gave up, and that the engine has not ended."""
        self._asked: set[str] = set()
        """Requests that were sent in and are not told to have ended."""
        self._late: set[str] = set()
        """Those of them that the engine ended, while their clients are giving them up."""
        self._seq = itertools.count()
        self._invocation_ids = itertools.count()
        self._started_ns = time.monotonic_ns() - round(engine.clock_s() * 1e9)
        self._here = _Here()
        self._versions: list[list[int]] = []
        self._held: dict[str, frozenset[int]] = {}
        self.locks: Locks | None = None
        """What the probe knows of the locks that this thread holds."""
        self._threads_told = False

    # -- operations ------------------------------------------------------------------------

    def begin(self, operation: str | None, request_id: str | None) -> None:
        """Begin an operation on this thread; what is told until its end belongs to it."""
        here = self._here
        if here.version is None:
            here.version = [0]
            self._versions.append(here.version)
        if not here.operations:
            here.version[0] += 1
            here.told = 0
        elif request_id is None:
            request_id = here.operations[-1][1]
        # The outermost name stands: an eviction within an acquisition is part of that.
        if here.operations and here.operations[-1][0] is not None:
            operation = here.operations[-1][0]
        here.operations.append((operation, request_id))
        if self.locks is not None:
            here.marks.append(self.locks.begin(outermost=len(here.operations) == 1))

    def end(self, error: BaseException | None) -> None:
        """End the operation that was begun last on this thread; one without effect is not told."""
        here = self._here
        if error is not None or here.told:
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
                self._automatic_snapshot("failure", None)

    def mark(self) -> tuple[int, ...] | None:
        """Return what stays equal until an operation begins; None while one is under way."""
        versions = tuple(version[0] for version in self._versions)
        return None if any(version % 2 for version in versions) else versions

    # -- events ----------------------------------------------------------------------------

    def reserve(self) -> tuple[int, int]:
        """Return a place among the events and the time, for an event that is told later."""
        place = self._place()
        operation, owner = self._here.operations[-1] if self._here.operations else (None, None)
        self._open[place[0]] = place[1], owner, operation
        return place

    def _place(self) -> tuple[int, int]:
        return next(self._seq), time.monotonic_ns() - self._started_ns

    def unused(self, place: tuple[int, int]) -> None:
        """Take note that nothing takes a place that was reserved."""
        if self._open.pop(place[0], None) is not None:
            self._skip(place[0])

    def _skip(self, place: int) -> None:
        """Have nobody wait for what comes at a place."""
        if self.closed:
            return
        if self.dropped["events"] and place > max(
            (row[0] for row in self.events[-_NEAR:]), default=-1
        ):
            return  # nothing is kept after it, so nothing waits
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
        """Keep an event; the thread, the operation and its request are added here.

        `extras` are further columns of the table `events`; what they hold must not change later.
        """
        if extras and not extras.keys() <= _EXTRAS:
            raise TypeError(f"An event has no field {', '.join(extras.keys() - _EXTRAS)}.")
        if (place is not None and self._open.pop(place[0], None) is None) or self.closed:
            return  # the recording ended before
        # Of what comes after a dropped one nothing could be made.
        if len(self.events) >= self._room or self.dropped["events"]:
            self._overflow("events")
            if place is not None:
                self._skip(place[0])
            return
        here = self._here
        here.told += 1
        operations = here.operations
        current, owner = operations[-1] if operations else (None, None)
        if place is None:
            seq, t_ns = self._place()
        else:
            seq, t_ns = place
        stack = _stack() if self.stacks and kind not in _STACKLESS else None
        locks = None
        if self.locks is not None and kind in _LOCKED:
            locks = self.locks.names(here.marks[-1] if here.marks else None)
        self.events.append(
            (seq, t_ns, here.name or self._name(), request_id or owner, operation or current, kind,
             pages, free_pages, node, parent, ref_before, ref_count, tokens_hit, tokens_missed,
             value, digest, extras or None, locks, stack)
        )  # fmt: skip
        if stack or extras or (pages and len(pages) > _LONG):
            self._weigh_event(stack, extras, pages)
        if pages and kind in SEEN and (checksums := self.checksums) is not None:
            self.of_bytes(checksums.seen, kind, pages, request_id or owner)

    def at_token(
        self, kind: str, request_id: str, value: int | None, digest: int | bytes | None
    ) -> None:
        """Keep an event of a kind that comes with every token of every request: quick."""
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

    def begins_with(self, first: Snapshot) -> None:
        """Take note of what requests held already when the recording began."""
        for request_id, pages in first.state.holdings.items():
            self._held.setdefault(request_id, frozenset(pages))

    def holds(self, request_id: str, pages: Iterable[int]) -> None:
        """Keep what a request came to hold, and what it holds no longer."""
        now, before = frozenset(pages), self._held.get(request_id, frozenset())
        if now == before:
            return
        if now:
            self._held[request_id] = now
        else:
            self._held.pop(request_id, None)
        if gone := before - now:
            self.event("pages_dropped", request_id=request_id, pages=sorted(gone))
        if new := now - before:
            self.event("pages_held", request_id=request_id, pages=sorted(new))

    def held_by(self, request_id: str) -> frozenset[int]:
        """Return the pages that a request was last told to hold."""
        return self._held.get(request_id, frozenset())

    def holders_of(self, page: int) -> list[str]:
        """Return the requests that were last told to hold a page."""
        return sorted(r for r, pages in list(self._held.items()) if page in pages)

    def _name(self) -> str:
        """Return the name of the engine's worker that this thread is, or the thread's own."""
        try:
            worker = str(asyncio.get_running_loop()._worker)  # type: ignore[attr-defined]
            name = worker.partition("'")[2].rpartition("'")[0].partition("-")[2] or worker
        except (RuntimeError, AttributeError):
            # Not kept: the engine's threads have no worker before their loop runs.
            return threading.current_thread().name
        self._here.name = name
        return name

    # -- invocations ---------------------------------------------------------------------------

    def invocation_begins(self, phase: str, request_ids: list[str]) -> tuple[Any, ...]:
        """Note the beginning of an invocation and return it for `invocation_ends`."""
        seq, t_ns = self._place()
        invocation = (next(self._invocation_ids), phase, request_ids, seq, t_ns, self._here.name
                  or self._name())  # fmt: skip
        if not self.closed:
            self.under_way[invocation[0]] = invocation
        # Another thread may end the looking meanwhile.
        if (checksums := self.checksums) is not None:
            self.of_bytes(checksums.begins, invocation[0])
        return invocation

    def invocation_unseen(self) -> None:
        """Take note that an invocation is called which could not be told: it writes unseen."""
        self._no_more_checksums("an invocation could not be told")

    def invocation_ends(
        self, invocation: tuple[Any, ...], arrays: dict[str, Any], error: BaseException | None
    ) -> None:
        """Keep an invocation with the arguments that the device got."""
        number, phase, request_ids, seq, begun_ns, thread = invocation
        if number not in self.under_way:
            return  # the recording ended before
        if (checksums := self.checksums) is not None:
            self.of_bytes(checksums.ends, number, phase, request_ids, arrays, error)
        end_seq, ended_ns = self._place()
        if self.under_way.pop(number, None) is None:
            self._skip(end_seq)
            return  # the recording ended meanwhile
        if (opened := self.checksums) is not None and opened is not checksums:
            # Opened meanwhile, it took the invocation for one under way.
            self.of_bytes(opened.ends, number, phase, request_ids, arrays, error)
        if len(self.invocations) >= self.max_events or number > self._last_invocation:
            self._overflow("invocations")
            self._skip(seq)
            self._skip(end_seq)
            if len(self.unkept) < _MOST_NAMED:
                self.unkept.append(request_ids)
            return
        shape, _ = arrays.get("seq_lens", ((None,), None))
        scores = arrays.get("scores")
        scores = scores and scores.kept(self.likeliest)
        self.invocations.append(
            (number, phase, len(request_ids), shape[0], request_ids, arrays.get("tokens"),
             arrays.get("seq_lens"), arrays.get("start_positions"),
             arrays.get("block_tables"), seq, end_seq, thread, begun_ns / 1e9,
             (ended_ns - begun_ns) / 1e9, None if error is None else repr(error),
             scores, arrays.get("results"), arrays.get("changed"))
        )  # fmt: skip
        self._weigh(_invocation_bytes(arrays, scores))

    def last_invocation_of(self, request_ids: list[str]) -> int | None:
        """Return the number of the last invocation of just these requests, landed or not."""
        landed = ((f[0], f[_IDS]) for f in reversed(self.invocations))
        last = next((number for number, ids in landed if ids == request_ids), -1)
        begun = [
            n for n, invocation in list(self.under_way.items()) if invocation[2] == request_ids
        ]
        number = max([last, *begun])
        return None if number < 0 else number

    # -- snapshots -------------------------------------------------------------------------

    def snapshot(self, moment: str, request_id: str | None, timeout_s: float) -> Snapshot:
        """Take a snapshot between two operations if there is such a moment in time; keep it.

        Within an operation of this very thread there is none to wait for.
        """
        probe = self.engine.probe
        assert probe is not None
        places: list[tuple[int, int]] = []

        def place() -> int:
            places.append(self.reserve())
            return places[-1][0]

        wait_s = 0.0 if self._here.operations else timeout_s
        try:
            state, seq, consistent = read_between(probe, self.mark, place, wait_s)
        except BaseException:
            for unused in places:
                self.unused(unused)
            raise
        for unused in places[:-1]:
            self.unused(unused)
        snapshot = Snapshot(
            state=state,
            moment=moment,
            request_id=request_id,
            seq=seq,
            t_s=places[-1][1] / 1e9,
            consistent=consistent,
        )
        # Whoever has seen the event finds the snapshot, too.
        if self.closed:
            return snapshot
        full = len(self.snapshots) >= self.max_snapshots or self.bytes > self.max_bytes
        if not full or not self.snapshots:  # whoever follows it begins with the first
            self.snapshots.append(snapshot)
            self._weigh(_snapshot_bytes(state))
        else:
            self._overflow("snapshots")
        self.event(
            "snapshot",
            place=places[-1],
            request_id=request_id,
            free_pages=len(state.free),
            moment=moment,
        )
        return snapshot

    def _automatic_snapshot(self, moment: str, request_id: str | None) -> None:
        if self.automatic and not self.closed and self.engine.probe is not None:
            try:
                self.snapshot(moment, request_id, _SNAPSHOT_WAIT_S)
            except Exception as error:
                self.fault(error)

    # -- requests --------------------------------------------------------------------------

    def submitted(self, request_id: str, prompt_tokens: Sequence[int]) -> None:
        """Note that a request is about to be sent in."""
        self._automatic_snapshot("before", request_id)
        self._asked.add(request_id)
        self._late.discard(request_id)
        self._given_up.discard(request_id)
        self.event("submitted", request_id=request_id, tokens=tuple(prompt_tokens))

    def token(self, request_id: str, token: int | None, first: bool) -> None:
        """Note that a token arrived."""
        self.at_token("first_token" if first else "token", request_id, token, None)

    def answered(self, request_id: str, tokens: Sequence[int], count: int) -> None:
        """Note that the engine delivered an answer."""
        self.event("answered", request_id=request_id, value=count, tokens=tuple(tokens))

    def done(self, completion: Completion) -> None:
        """Note how a request ended."""
        if completion.outcome in ("timeout", "engine_died"):
            if completion.request_id not in self._late:
                self._given_up.add(completion.request_id)
            self._waiting(completion.request_id)
        self._asked.discard(completion.request_id)
        self._late.discard(completion.request_id)
        self.event(
            "done",
            request_id=completion.request_id,
            value=completion.missing_tokens,
            outcome=completion.outcome,
        )
        failed = completion.outcome in ("error", "timeout", "engine_died", "empty")
        if failed:
            self._automatic_snapshot("failure", completion.request_id)
        self._automatic_snapshot("after", completion.request_id)

    def late(self, request_id: str, outcome: str) -> None:
        """Note that the engine ended a request that had an end already."""
        if request_id in self._asked:  # else its end was told before
            self._late.add(request_id)
        self._given_up.discard(request_id)
        self.event("late", request_id=request_id, outcome=outcome)

    @property
    def awaits(self) -> bool:
        """Whether the engine has still to end a request that its client gave up."""
        return bool(self._given_up)

    @property
    def activity(self) -> tuple[Any, ...]:
        """What changes with every cache operation, invocation, and given-up request.

        It does so also when the recording is full.
        """
        invocations = len(self.invocations) + self.dropped["invocations"]
        return (
            [version[0] for version in self._versions],
            invocations,
            list(self.under_way),
            len(self._given_up),
        )

    def look_again(self) -> None:
        """Tell where the requests are that their clients gave up and the engine has not ended."""
        for request_id in sorted(self._given_up):
            self._waiting(request_id)

    def finish(self) -> None:
        """Look at all bytes and at the cache a last time, and end the recording."""
        if self.closed:
            return
        self.read_all_bytes()
        self.checksums = None
        if self.engine.probe is not None:
            self.snapshot("asked", None, 1.0)
        self.close()

    def close(self) -> None:
        """Tell what has not ended by now; whatever happens later is not recorded."""
        if self.closed:
            return
        self.look_again()
        for number in list(self.under_way):
            invocation = self.under_way.pop(number, None)
            if invocation is not None:
                _, phase, request_ids, seq, t_ns, _ = invocation
                self._open[seq] = t_ns, None, None
                self.event("invocation_unfinished", place=(seq, t_ns), value=number, phase=phase,
                           request_ids=request_ids)  # fmt: skip
        for seq, (t_ns, owner, operation) in list(self._open.items()):
            self.event("unfinished", place=(seq, t_ns), request_id=owner, operation=operation)
        self.closed = True

    def _waiting(self, request_id: str) -> None:
        """Tell where a request is that was given up, and what every thread does."""
        adapter = self.engine.service
        try:
            where = "unknown" if adapter is None else adapter.request_state(request_id)
            invocations = [f[0] for f in list(self.under_way.values()) if request_id in f[2]]
            state, _, phase = where.partition(" ")
            probe = self.engine.probe
            stall: dict[str, Any] = {
                "state": "executing" if invocations else state,
                "phase": None if invocations else phase or None,
                "invocations": invocations,
                "locks": None if probe is None else probe.kept_locks(),
            }
            # A worker that died leaves its frames on a stack that others use by now: to read them
            # can end the process.
            if not self._threads_told and self.engine.died is None:
                self._threads_told, stall["threads"] = True, _threads()
            self.event("stall", request_id=request_id, stall=stall)
        except Exception as error:
            self.fault(error)

    def died(self, death: EngineDeath) -> None:
        """Note that the engine died, and how its cache lies there."""
        self.event("worker_died", message=death.message)
        self._automatic_snapshot("failure", None)

    # -- the bytes of pages ----------------------------------------------------------------

    def of_bytes(self, look: Callable[..., None], *args: Any) -> None:
        """Look at bytes; a mistake in it must not reach the engine, nor make a false alarm."""
        try:
            look(*args)
        except Exception as error:
            self.fault(error)
            self._no_more_checksums(f"{type(error).__name__}: {error}")

    def read_all_bytes(self) -> None:
        """Read all pages once more, and tell how far their bytes were checked."""
        if (checksums := self.checksums) is not None:
            self.of_bytes(checksums.read_all)
        if (checksums := self.checksums) is not None:
            self.event("checksums", coverage=checksums.coverage)

    def _no_more_checksums(self, reason: str) -> None:
        checksums, self.checksums = self.checksums, None
        if checksums is not None:
            checksums.close()
            self.event("checksums", message=reason)

    # -- what goes wrong here --------------------------------------------------------------

    def fault(self, error: Exception) -> None:
        """Keep an error of the watching itself as an event, and show the first few as warnings."""
        try:
            text = f"{type(error).__name__}: {error}"
            if len(self.faults) >= _MOST_NAMED:
                self._overflow("faults")
            else:
                self.faults.append(text)
                if len(self.faults) <= _SHOWN_FAULTS:
                    _warn(f"The engine could not be watched at one point: {text}")
            self.event("observer_error", message=text)
        except Exception:  # as where memory is short; it must not reach the engine
            self.dropped["faults"] += 1

    def _weigh(self, count: int) -> None:
        """Count bytes that were kept; when there are too many, nothing more is kept from now on.

        Two threads that count at once may lose one of the two; it is a bound, and no measure.
        """
        self.bytes += count
        if self.bytes > self.max_bytes and self._last_invocation == sys.maxsize:
            self._last_invocation = max([*self.under_way, -1])
            self._room = min(self._room, len(self.events))

    def _weigh_event(
        self, stack: Sequence[Any] | None, extras: dict[str, Any], pages: Sequence[int] | None
    ) -> None:
        """Count the bytes of an event's frames, and of its lists and texts where they are long."""
        count = _FRAME * len(stack or ())
        for value in (pages, *extras.values()):
            if isinstance(value, str | tuple | list) and len(value) > _LONG:
                count += len(value) if isinstance(value, str) else _WORD * len(value)
        if count:
            self._weigh(count)

    def _overflow(self, what: str) -> None:
        self.dropped[what] += 1
        if self.dropped[what] == 1:
            kept: list[Any] = self.faults if what == "faults" else getattr(self, what)
            bound = len(kept)
            why = f" for its {self.max_bytes} bytes" if self.bytes > self.max_bytes else ""
            _warn(
                f"The recording is full{why}: it keeps the first {bound} {what}, and counts the"
                " rest."
            )


def _invocation_bytes(arrays: dict[str, Any], scores: Scores | Top | None) -> int:
    """Return about how much an invocation takes: its arrays, and its scores where they are kept."""
    count = _INVOCATION
    for name in _ARRAYS:
        if array := arrays.get(name):
            count += _WORD * len(array[1])
    noted = arrays.get("results") if scores is None else scores
    if isinstance(noted, Scores):  # once more with the tokens that were chosen from them
        return count + len(noted.data) * (2 if "results" in arrays else 1)
    likely = sum(map(len, scores.tokens)) if isinstance(scores, Top) else 0
    return count + _NUMBERS * (likely + len(arrays.get("changed") or ()))


def _snapshot_bytes(state: CacheState) -> int:
    """Return about how much a snapshot takes."""
    pages = len(state.free) + sum(map(len, state.holdings.values())) + len(state.allocated or ())
    return _WORD * (pages + sum(len(node.tokens) for node in state.nodes)) + _NODE * len(
        state.nodes
    )


def _warn(message: str) -> None:
    """Show a warning; where warnings are errors, it must still not reach the engine."""
    with contextlib.suppress(ObserverWarning):
        warnings.warn(message, ObserverWarning, stacklevel=3)


def _stack() -> tuple[tuple[CodeType, int], ...]:
    """Return the engine's own frames, innermost first; put into words only when they are read."""
    frames = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if _is_engines(code):
            # Which line that is takes long to find.
            frames.append((code, frame.f_lasti))
        frame = frame.f_back
    return tuple(frames)


@functools.cache
def _is_engines(code: CodeType) -> bool:
    return "shortfin" in code.co_filename


def stack_in_words(frames: Sequence[tuple[CodeType, int]] | str | None) -> str | None:
    """Return frames of the engine, innermost last, a line each."""
    if frames is None or isinstance(frames, str):
        return frames
    return "\n".join(_frame_in_words(code, _line(code, at)) for code, at in reversed(frames))


@functools.cache
def _line(code: CodeType, at: int) -> int | None:
    """Return the line of an instruction."""
    lines = (line for first, last, line in code.co_lines() if first <= at < last)
    return next(lines, code.co_firstlineno)


def _frame_in_words(code: CodeType, line: int | None) -> str:
    file = code.co_filename.rpartition("site-packages/")[2]
    return f"{file}:{line} in {code.co_qualname}"


def _threads() -> list[dict[str, Any]]:
    """Return what every thread of the process does, innermost first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found: list[dict[str, Any]] = []
    for ident, top in list(sys._current_frames().items()):
        lines: list[str] = []
        frame: FrameType | None = top
        while frame is not None and len(lines) < _SHOWN_FRAMES:
            lines.append(_frame_in_words(frame.f_code, frame.f_lineno))
            frame = frame.f_back
        found.append({"thread": f"{names.get(ident, 'thread')} {ident}", "frames": lines})
    return found
