"""A recording of an engine, as pandas frames and as tables to be written."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from analysis.core.wording import counted, listed
from analysis.recording.recorder import EVENT_FIELDS, INVOCATION_FIELDS, Recorder
from analysis.recording.stacks import stack_in_words
from analysis.runs.schema import TABLES
from analysis.runs.tables import to_frame, to_table
from analysis.shortfin.scores import likeliest
from analysis.shortfin.verify import digest_of, results_of
from analysis.snapshots.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd

STREAMED = ("events", "invocations", "snapshots")
"""The tables of a recording."""


class _Recorded(ABC):
    """What recordings have in common, live or finished: their tables as frames and snapshots."""

    @abstractmethod
    def table(self, name: str) -> pa.Table:
        """Return a table of the recording, sorted by `seq`."""

    @property
    def events(self) -> pd.DataFrame:
        """The table `events`, in order."""
        return to_frame("events", self.table("events"))

    @property
    def invocations(self) -> pd.DataFrame:
        """The table `invocations`: ended calls of the compiled model."""
        return to_frame("invocations", self.table("invocations"))

    @property
    def snapshots(self) -> pd.DataFrame:
        """The table `snapshots`."""
        return to_frame("snapshots", self.table("snapshots"))

    @property
    @abstractmethod
    def taken(self) -> list[Snapshot]:
        """The snapshots, in order."""

    def before(self, request_id: str) -> Snapshot:
        """Return the snapshot before a request was submitted; KeyError if there is none."""
        return self._moment("before", request_id)

    def after(self, request_id: str) -> Snapshot:
        """Return the snapshot after a request ended; KeyError if there is none."""
        return self._moment("after", request_id)

    def _moment(self, moment: str, request_id: str) -> Snapshot:
        for snapshot in reversed(self.taken):
            if (snapshot.moment, snapshot.request_id) == (moment, request_id):
                return snapshot
        raise KeyError(f"There is no snapshot {moment} request {request_id!r}.")

    @property
    def failures(self) -> list[Snapshot]:
        """The snapshots at failures, in order."""
        return [snapshot for snapshot in self.taken if snapshot.moment == "failure"]


@dataclass(frozen=True)
class FinishedRecording(_Recorded):
    """A recording without its engine, which can be stored."""

    tables: dict[str, pa.Table]
    """Those of `STREAMED`."""

    def table(self, name: str) -> pa.Table:
        """Return a table of the recording, sorted by `seq`."""
        return self.tables[name]

    @cached_property
    def taken(self) -> list[Snapshot]:
        """The snapshots, in order."""
        return [Snapshot.from_row(row) for row in self.tables["snapshots"].to_pylist()]


class Recording(_Recorded):
    """Invocations, events and snapshots of one engine; grows while it is observed."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        """Its recorder, which can be read while it records."""

    @property
    def taken(self) -> list[Snapshot]:
        """The snapshots, in order."""
        return sorted(self.recorder.snapshots, key=lambda snapshot: snapshot.seq or 0)

    def finished(self) -> FinishedRecording:
        """Return a copy of what was recorded so far."""
        return FinishedRecording({name: self.table(name) for name in STREAMED})

    @property
    def faults(self) -> list[str]:
        """Errors of the recording; each is also an event `observer_error`."""
        return list(self.recorder.faults)

    @property
    def overflow(self) -> str | None:
        """What was dropped because the recording was full, in a sentence; None if nothing."""
        left_out = {name: count for name, count in self.recorder.dropped.items() if count}
        if not left_out:
            return None
        kinds = listed(counted(count, name[:-1]) for name, count in left_out.items())
        were = "was" if sum(left_out.values()) == 1 else "were"
        return f"The recording was full: {kinds} {were} counted but not kept."

    def sizes(self) -> dict[str, int]:
        """Return the current number of rows of each table."""
        return {name: len(getattr(self.recorder, name)) for name in STREAMED}

    def standing(self, skipped: int = 0) -> dict[str, Any]:
        """Return the pending items, as plain values, for a `StreamWriter`.

        Keys: `t_ns`, the time on the engine's clock, and `began_ns`, that clock's start on the
        monotonic clock; `ended` and `full`, flags of the recording; `unfinished` operations (seq,
        t_ns, owner, name); `invocations` (seq, t_ns, number, phase, request_ids); and the unused
        sequence numbers from index `skipped` on.
        """
        recorder = self.recorder
        # Read the flag first: after the end, nothing more is recorded.
        ended = recorder.closed
        unfinished = [[seq, *what] for seq, what in list(recorder._open.items())]
        under_way = list(recorder.under_way.values())
        return {
            "ended": ended,
            "full": recorder.dropped["events"] > 0,
            "began_ns": recorder._started_ns,
            "t_ns": time.monotonic_ns() - recorder._started_ns,
            "unfinished": unfinished,
            "invocations": [[seq, at, n, phase, ids] for n, phase, ids, seq, at, _ in under_way],
            "skipped": recorder.skipped[skipped:],
        }

    def table(self, name: str, trial_id: str = "", start: int = 0) -> pa.Table:
        """Return the rows of a table from index `start` on, sorted by `seq`.

        A later row may have a smaller `seq`, so sort the union of several parts.
        """
        if name == "snapshots":
            rows = [s.to_row(trial_id) for s in self.recorder.snapshots[start:]]
            return to_table(name, sorted(rows, key=lambda row: row["seq"]))
        if name == "events":
            return _columns(name, EVENT_FIELDS, self.recorder.events[start:], trial_id)
        invocations = self.recorder.invocations[start:]
        return _columns(name, INVOCATION_FIELDS, invocations, trial_id, self.recorder.likeliest)

    def __str__(self) -> str:
        sizes = self.sizes()
        text = ", ".join(counted(number, name[:-1]) for name, number in sizes.items())
        kinds = Counter(row[EVENT_FIELDS.index("kind")] for row in list(self.recorder.events))
        often = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common(8))
        return f"{text} ({often}). {self.overflow or ''}".strip()

    def __repr__(self) -> str:
        return f"<Recording: {self}>"


_ARRAYS = ("tokens", "seq_lens", "start_positions", "block_tables")


def _nested(shape: tuple[int, ...], flat: Any) -> list[Any]:
    """Return an array of one or two dimensions as lists."""
    if len(shape) == 1:
        return list(flat)
    rows, columns = shape
    return [list(flat[row * columns : (row + 1) * columns]) for row in range(rows)]


def _columns(
    name: str, fields: Sequence[str], rows: list[tuple[Any, ...]], trial_id: str, likely: int = 0
) -> Any:
    """Return rows as an Arrow table, column by column, which is fast for a million rows."""
    rows = sorted(rows, key=lambda row: row[fields.index("seq")])
    columns: dict[str, Sequence[Any]] = {}
    columns = dict(zip(fields, zip(*rows, strict=True), strict=True)) if rows else columns
    if likely and rows:
        tops = likeliest(columns["scores"], likely)
        columns["top_tokens"] = [top and top.tokens for top in tops]
        columns["top_logprobs"] = [top and top.logprobs for top in tops]
    if "results" in columns:
        results = [results_of(noted) for noted in columns["results"]]
        columns["result_tokens"] = [tokens for tokens, _ in results]
        columns["result_digests"] = [digests for _, digests in results]
    if "t_ns" in columns:
        columns["t_s"] = [t_ns / 1e9 for t_ns in columns["t_ns"]]
        for row, extras in enumerate(columns["extras"]):
            for column, value in (extras or {}).items():
                columns.setdefault(column, [None] * len(rows))[row] = value  # type: ignore[index]
    arrays = []
    for field in TABLES[name]:
        if field.name == "trial_id":
            arrays.append(pa.repeat(trial_id, len(rows)))
        else:
            values = columns.get(field.name) or ()
            if all(value is None for value in values):  # common, and much faster
                arrays.append(pa.nulls(len(rows), field.type))
                continue
            if field.name == "stack":
                values = [stack_in_words(frames) for frames in values]
            if field.name == "digest":
                values = [digest_of(noted) for noted in values]
            if field.name in _ARRAYS and name == "invocations":
                values = [None if value is None else _nested(*value) for value in values]
            arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=TABLES[name])
