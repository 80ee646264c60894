"""Writes a recording to disk while it grows, so that it survives a crash of the process.

The file `recorded` is append-only: rows of the tables as Arrow record batches, followed by a mark
with the position up to which everything is complete. If the process is killed, data after the last
complete mark is ignored.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import json
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.background import repeated
from analysis.recording.recording import STREAMED, Recording
from analysis.runs.schema import TABLES
from analysis.runs.tables import to_table
from analysis.shortfin.capture import ObserverWarning

_FILE, _MARK = "recorded", len(STREAMED)
_HEAD = struct.Struct("<BII")
"""Header of each frame: table or _MARK, uncompressed bytes, compressed bytes."""
_CODEC = "lz4"
_PATIENCE_S = 20.0
"""Longest wait at the end for rows that are being written, in seconds."""


class StreamWriter:
    """Writes what a recording gained to `directory/recorded`.

    Errors do not reach the engine or its clients: an error is kept in `failure`, the first one
    becomes a warning, and the same rows are written again next time.
    """

    def __init__(self, recording: Recording, directory: Path, trial_id: str) -> None:
        """Wrap a recording; nothing is written before `write` or `writing` is called."""
        self.failure: Exception | None = None
        """Why rows could not be written; None if all were written."""
        self._recording, self._trial_id = recording, trial_id
        self._path = directory / _FILE
        self._size = 0
        self._rows = dict.fromkeys(STREAMED, 0)
        self._reach = _Reach()
        self._warned = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def writing(self, every_s: float = 0.05) -> Iterator[None]:
        """Write every `every_s` seconds on a thread of its own, and at the end of the block."""
        try:
            with repeated(self.write, "cachelab-stream", every_s, patience_s=_PATIENCE_S):
                yield
        finally:
            self.write()

    def write(self) -> None:
        """Write new rows; call it once more after the block for the last rows."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            self._failed(OSError(errno.ETIMEDOUT, "the disk is too slow"))
            return
        try:
            self._write()
        except Exception as error:
            self._failed(error)
        finally:
            self._lock.release()

    def _write(self) -> None:
        # Read pending items before and after the rows, because they may end meanwhile.
        before = self._recording.standing(self._reach.skipped)
        failure: Exception | None = None
        tables: dict[str, pa.Table] = {}
        sizes = self._recording.sizes()
        for name in (name for name in STREAMED if sizes[name] > self._rows[name]):
            try:
                tables[name] = self._recording.table(name, self._trial_id, self._rows[name])
            except Exception as error:
                failure = error
        after = self._recording.standing(self._reach.skipped)
        reach = self._reach.after(tables, before, after)
        missing = [self._recording.overflow, None if failure is None else _in_words(failure)]
        mark = {**reach.mark, "lacking": " ".join(filter(None, missing)) or None}
        frames = [
            _frame(STREAMED.index(name), batch.serialize())
            for name, table in tables.items()
            for batch in table.to_batches()
        ]
        self._append(b"".join([*frames, _frame(_MARK, json.dumps(mark).encode())]))
        # Only now, so that rows that could not be written are retried.
        self._reach = reach
        for name, table in tables.items():
            self._rows[name] += table.num_rows
        self.failure = None
        if failure is not None:
            self._failed(failure)

    def _append(self, content: bytes) -> None:
        """Append to the file atomically."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "r+b" if self._size else "wb", buffering=0) as file:
            try:
                file.seek(self._size)
                left = memoryview(content)
                while left:
                    left = left[file.write(left) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._size)
                raise
        self._size += len(content)

    def _failed(self, error: Exception) -> None:
        self.failure = error
        if not self._warned:
            self._warned = True
            # If warnings are errors, this one must not end the thread or the block.
            with contextlib.suppress(ObserverWarning):
                warnings.warn(_in_words(error), ObserverWarning, stacklevel=2)


class _Reach:
    """The position up to which a recording on disk is complete."""

    def __init__(self) -> None:
        self.skipped = 0
        """Number of unused sequence numbers already counted."""
        self.mark: dict[str, Any] = {"t_ns": 0}
        self._next = 0
        self._early: list[int] = []
        """Heap of sequence numbers after the first missing one."""

    def after(
        self, tables: Mapping[str, pa.Table], before: dict[str, Any], after: dict[str, Any]
    ) -> _Reach:
        """Return the new mark, from these rows and the pending items before and after them."""
        reach = _Reach()
        known = list(self._early)
        for name, column in (("events", "seq"), ("invocations", "seq"), ("invocations", "end_seq")):
            if name in tables:
                known += tables[name][column].to_pylist()
        known += after["skipped"]
        reach.skipped = self.skipped + len(after["skipped"])
        heapq.heapify(known)
        unfinished = {row[0]: row for moment in (before, after) for row in moment["unfinished"]}
        invocations = {row[0]: row for moment in (before, after) for row in moment["invocations"]}
        under_way = {*unfinished, *invocations}
        place = self._next
        while True:
            while known and known[0] <= place:
                place = max(place, heapq.heappop(known) + 1)
            if place not in under_way:
                break
            place += 1
        reach._next, reach._early = place, known
        reach.mark = {
            "ended": before["ended"],
            "full": after["full"],
            "began_ns": before["began_ns"],
            # With a gap the time is unknown, but not before the previous mark.
            "t_ns": self.mark["t_ns"] if known else before["t_ns"],
            "to": place,
            "unfinished": [row for seq, row in unfinished.items() if seq < place],
            "invocations": [row for seq, row in invocations.items() if seq < place],
        }
        return reach


def _in_words(error: Exception) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    return f"A part of the recording could not be written ({words})."


def _frame(kind: int, content: Any) -> bytes:
    packed: bytes = pa.compress(content, codec=_CODEC, asbytes=True)
    return _HEAD.pack(kind, len(content), len(packed)) + packed


def read_stream(directory: Path, ended_ns: int | None = None) -> dict[str, pa.Table]:
    """Return the tables that a trial wrote to `directory`, each sorted by `seq`.

    Tables without rows are left out. If the process ended during the recording, events are added
    for unfinished operations and invocations, and `cut` for its end. `ended_ns` is the end of the
    process on the monotonic clock.
    """
    batches: dict[int, list[pa.RecordBatch]] = {kind: [] for kind in range(_MARK)}
    mark: dict[str, Any] | None = None
    for rows, mark in _ticks(directory):  # noqa: B007  # keep the last mark
        for kind, content in rows:
            schema = TABLES[STREAMED[kind]]
            batches[kind].append(pa.ipc.read_record_batch(pa.py_buffer(content), schema))
    tables = {
        STREAMED[kind]: pa.Table.from_batches(parts).combine_chunks().sort_by("seq")
        for kind, parts in batches.items()
        if parts
    }
    if mark is not None and tables and not mark["ended"] and not mark["full"]:
        return _cut(tables, mark, ended_ns)
    return tables


def read_lacking(directory: Path) -> str | None:
    """Return in words what is missing from the stream; None if nothing is known to be."""
    lacking = None
    for _, mark in _ticks(directory):
        lacking = mark["lacking"]
    return lacking


def cut_of(tables: Mapping[str, pa.Table]) -> str | None:
    """Return in words where a recording of a killed process ends; None if it is complete."""
    if "events" not in tables:
        return None
    for row in tables["events"].filter(pc.field("kind") == "cut").to_pylist():
        return cut_in_words(row["t_s"], row["late_s"], row["request_ids"])
    return None


def cut_in_words(t_s: float, late_s: float | None, request_ids: Sequence[str] | None) -> str:
    """Describe an event `cut`: the end of the recording, and the number of open requests."""
    late = "" if late_s is None else f"at most {late_s * 1e3:.0f} ms "
    sentence = f"The recording ends at {t_s:.3f} s, {late}before its process"
    if not (number := len(request_ids or ())):
        return f"{sentence}."
    have = "1 request has" if number == 1 else f"{number} requests have"
    return f"{sentence}; {have} no end in it, so the engine's end is not recorded."


def _cut(
    tables: dict[str, pa.Table], mark: Mapping[str, Any], ended_ns: int | None
) -> dict[str, pa.Table]:
    """Return the complete part of the tables, with events for unfinished items."""
    place, t_ns = mark["to"], mark["t_ns"]
    kept = {name: table.filter(pc.field("seq") < place) for name, table in tables.items()}
    trial_id = next(iter(tables.values()))["trial_id"][0].as_py()
    finished = set(kept["invocations"]["seq"].to_pylist()) if "invocations" in kept else set()
    happened = set(kept["events"]["seq"].to_pylist()) if "events" in kept else set()
    rows = [
        {"seq": seq, "t_s": at / 1e9, "kind": "unfinished", "request_id": owner,
         "operation": operation}
        for seq, at, owner, operation in mark["unfinished"]
        if seq not in happened
    ]  # fmt: skip
    rows += [
        {"seq": seq, "t_s": at / 1e9, "kind": "invocation_unfinished", "value": number,
         "phase": phase, "request_ids": request_ids}
        for seq, at, number, phase, request_ids in mark["invocations"]
        if seq not in finished
    ]  # fmt: skip
    late_s = None if ended_ns is None else max(0, ended_ns - mark["began_ns"] - t_ns) / 1e9
    events = kept.get("events", TABLES["events"].empty_table())
    rows.append({"seq": place, "t_s": t_ns / 1e9, "kind": "cut", "late_s": late_s,
                 "request_ids": _without_end(events)})  # fmt: skip
    more = to_table("events", [{**row, "trial_id": trial_id} for row in rows])
    kept["events"] = pa.concat_tables([events, more]).sort_by("seq")
    return {name: table for name, table in kept.items() if table.num_rows}


def _without_end(events: pa.Table) -> list[str]:
    ends = events.filter(pc.is_in(events["kind"], pa.array(["submitted", "done"])))
    last = dict(zip(ends["request_id"].to_pylist(), ends["kind"].to_pylist(), strict=True))
    return sorted(request for request, kind in last.items() if request and kind == "submitted")


def _ticks(directory: Path) -> Iterator[tuple[list[tuple[int, bytes]], dict[str, Any]]]:
    """Yield the rows of each write, as (table, batch), with their mark."""
    try:
        content = memoryview((directory / _FILE).read_bytes())
    except FileNotFoundError:
        return
    rows: list[tuple[int, bytes]] = []
    while len(content) >= _HEAD.size:
        kind, size, packed = _HEAD.unpack_from(content)
        frame, content = content[_HEAD.size :][:packed], content[_HEAD.size + packed :]
        if len(frame) < packed:
            return
        unpacked = pa.decompress(frame, decompressed_size=size, codec=_CODEC, asbytes=True)
        if kind == _MARK:
            yield rows, json.loads(unpacked)
            rows = []
        else:
            rows.append((kind, unpacked))
