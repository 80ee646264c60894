"""Records requests, invocations, events and snapshots of an engine, on its threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from analysis.engine.cache import read_between
from analysis.engine.completion import Completion, EngineDeath
from analysis.engine.engine import Engine
from analysis.recording.log import EVENT_FIELDS, MOST_NAMED, EventLog
from analysis.recording.sizes import MOST_BYTES, invocation_bytes, snapshot_bytes
from analysis.recording.stacks import all_threads
from analysis.snapshots.snapshot import Snapshot

__all__ = ["EVENT_FIELDS", "INVOCATION_FIELDS", "MOST_BYTES", "Recorder"]

INVOCATION_FIELDS = (
    "invocation_id", "phase", "rows", "batch_size", "request_ids", "tokens", "seq_lens",
    "start_positions", "block_tables", "seq", "end_seq", "thread", "t_s", "duration_s", "error",
    "scores", "results", "changed",
)  # fmt: skip
_IDS = INVOCATION_FIELDS.index("request_ids")
_SNAPSHOT_WAIT_S = 0.02
"""Longest wait of an automatic snapshot for a moment between two operations, in seconds."""


class Recorder(EventLog):
    """Records all callbacks of an engine's cache observer and listener, up to a bound."""

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
        super().__init__(engine, stacks=stacks, max_events=max_events, max_bytes=max_bytes)
        self.automatic = snapshots
        self.max_snapshots = max_snapshots
        self.check_contents = False
        """Whether to read the pages of invocations and copies."""
        self.likeliest = likeliest
        """Number of most likely next tokens to keep for each row of an invocation."""
        self.verifies = verifies
        """Whether to check that arguments do not change, and to follow results."""
        self.unkept: list[list[str]] = []
        """Requests of the first dropped invocations; `dropped` counts all."""
        self._given_up: set[str] = set()
        """Requests that their clients gave up and the engine has not ended."""
        self._asked: set[str] = set()
        """Submitted requests that have not ended."""
        self._late: set[str] = set()
        """Those of them that the engine ended while their clients give them up."""
        self._invocation_ids = itertools.count()
        self._held: dict[str, frozenset[int]] = {}
        self._has_threads = False

    def operation_failed(self) -> None:
        """Take a snapshot at a failure."""
        self._automatic_snapshot("failure", None)

    def begins_with(self, first: Snapshot) -> None:
        """Set the pages that requests held when the recording began."""
        for request_id, pages in first.state.holdings.items():
            self._held.setdefault(request_id, frozenset(pages))

    def holds(self, request_id: str, pages: Iterable[int]) -> None:
        """Record the changes of a request's pages."""
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
        """Return the pages that a request holds."""
        return self._held.get(request_id, frozenset())

    def holders_of(self, page: int) -> list[str]:
        """Return the requests that hold a page."""
        return sorted(r for r, pages in list(self._held.items()) if page in pages)

    def invocation_begins(self, phase: str, request_ids: list[str]) -> tuple[Any, ...]:
        """Record the start of an invocation, and return it for `invocation_ends`."""
        seq, t_ns = self._place()
        invocation = (next(self._invocation_ids), phase, request_ids, seq, t_ns, self._here.name
                  or self._name())  # fmt: skip
        if not self.closed:
            self.under_way[invocation[0]] = invocation
        # Another thread may end the byte checks meanwhile.
        if (checksums := self.checksums) is not None:
            self.of_bytes(checksums.begins, invocation[0])
        return invocation

    def invocation_unseen(self) -> None:
        """Record the start of an invocation that could not be recorded; its writes are unknown."""
        self._no_more_checksums("an invocation could not be recorded")

    def invocation_ends(
        self, invocation: tuple[Any, ...], arrays: dict[str, Any], error: BaseException | None
    ) -> None:
        """Record an invocation with the arguments passed to the device."""
        number, phase, request_ids, seq, begun_ns, thread = invocation
        if number not in self.under_way:
            return  # the recording ended before
        if (checksums := self.checksums) is not None:
            self.of_bytes(checksums.ends, number, phase, request_ids, arrays, error)
        end_seq, ended_ns = self._place()
        if self.under_way.pop(number, None) is None:
            self._skip(end_seq)
            return  # the recording has ended meanwhile
        if (opened := self.checksums) is not None and opened is not checksums:
            # Byte checks that began meanwhile count the invocation as pending.
            self.of_bytes(opened.ends, number, phase, request_ids, arrays, error)
        if len(self.invocations) >= self.max_events or number > self._last_invocation:
            self._overflow("invocations")
            self._skip(seq)
            self._skip(end_seq)
            if len(self.unkept) < MOST_NAMED:
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
        self._weigh(invocation_bytes(arrays, scores))

    def last_invocation_of(self, request_ids: list[str]) -> int | None:
        """Return the number of the last invocation of exactly these requests."""
        finished = ((f[0], f[_IDS]) for f in reversed(self.invocations))
        last = next((number for number, ids in finished if ids == request_ids), -1)
        begun = [
            n for n, invocation in list(self.under_way.items()) if invocation[2] == request_ids
        ]
        number = max([last, *begun])
        return None if number < 0 else number

    def snapshot(self, moment: str, request_id: str | None, timeout_s: float) -> Snapshot:
        """Take and record a snapshot, between two operations if possible within `timeout_s`.

        During an operation of this thread it does not wait.
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
        # Append the snapshot before its event.
        if self.closed:
            return snapshot
        full = len(self.snapshots) >= self.max_snapshots or self.bytes > self.max_bytes
        if not full or not self.snapshots:  # a live check needs the first snapshot
            self.snapshots.append(snapshot)
            self._weigh(snapshot_bytes(state))
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

    def submitted(self, request_id: str, prompt_tokens: Sequence[int]) -> None:
        """Record the submission of a request."""
        self._automatic_snapshot("before", request_id)
        self._asked.add(request_id)
        self._late.discard(request_id)
        self._given_up.discard(request_id)
        self.event("submitted", request_id=request_id, tokens=tuple(prompt_tokens))

    def token(self, request_id: str, token: int | None, first: bool) -> None:
        """Record the arrival of a token."""
        self.at_token("first_token" if first else "token", request_id, token, None)

    def answered(self, request_id: str, tokens: Sequence[int], count: int) -> None:
        """Record an answer of the engine."""
        self.event("answered", request_id=request_id, value=count, tokens=tuple(tokens))

    def done(self, completion: Completion) -> None:
        """Record the end of a request."""
        if completion.outcome in ("timeout", "engine_died"):
            if completion.request_id not in self._late:
                self._given_up.add(completion.request_id)
            self._report_stall(completion.request_id)
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
        """Record that the engine ended a request that had already ended."""
        if request_id in self._asked:  # otherwise its end is already recorded
            self._late.add(request_id)
        self._given_up.discard(request_id)
        self.event("late", request_id=request_id, outcome=outcome)

    @property
    def awaits(self) -> bool:
        """Whether the engine has not ended a request that its client gave up."""
        return bool(self._given_up)

    @property
    def activity(self) -> tuple[Any, ...]:
        """A value that changes with every cache operation, invocation and given-up request.

        It also changes when the recording is full.
        """
        invocations = len(self.invocations) + self.dropped["invocations"]
        return (
            [version[0] for version in self._versions],
            invocations,
            list(self.under_way),
            len(self._given_up),
        )

    def look_again(self) -> None:
        """Record the state of requests that their clients gave up and the engine has not ended."""
        for request_id in sorted(self._given_up):
            self._report_stall(request_id)

    def finish(self) -> None:
        """Read all pages and the cache once more, and end the recording."""
        if self.closed:
            return
        self.read_all_bytes()
        self.checksums = None
        if self.engine.probe is not None:
            self.snapshot("asked", None, 1.0)
        self.close()

    def close(self) -> None:
        """Record unfinished operations, and end the recording."""
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

    def _report_stall(self, request_id: str) -> None:
        """Record the state of a given-up request, and the stacks of all threads."""
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
            # After a worker's death its stack is reused, and reading its frames can crash the
            # process.
            if not self._has_threads and self.engine.died is None:
                self._has_threads, stall["threads"] = True, all_threads()
            self.event("stall", request_id=request_id, stall=stall)
        except Exception as error:
            self.fault(error)

    def died(self, death: EngineDeath) -> None:
        """Record the death of the engine and a snapshot of its cache."""
        self.event("worker_died", message=death.message)
        self._automatic_snapshot("failure", None)
