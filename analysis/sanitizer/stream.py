"""Turns what was recorded, live or on disk, into what the checker takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.core.errors import RunError
from analysis.recording.recorder import EVENT_FIELDS, INVOCATION_FIELDS
from analysis.runs.schema import EVENT_EXTRAS
from analysis.sanitizer.shadow import Ints
from analysis.sanitizer.world import Event, Invocation, Unread
from analysis.shortfin.verify import digest_of, results_of

_EVENT = [EVENT_FIELDS.index(name) if name in EVENT_FIELDS else None for name in Event._fields]
_T_S, _PAGES = Event._fields.index("t_s"), Event._fields.index("pages")
_DIGEST, _EXTRAS = Event._fields.index("digest"), Event._fields.index("extras")
_T_NS = EVENT_FIELDS.index("t_ns")


def event_of(row: Sequence[Any]) -> Event:
    """Return an event of a recorder's row."""
    values: list[Any] = [None if place is None else row[place] for place in _EVENT]
    values[_PAGES] = tuple(values[_PAGES] or ())
    values[_T_S] = row[_T_NS] / 1e9
    values[_DIGEST] = digest_of(values[_DIGEST])
    values[_EXTRAS] = values[_EXTRAS] or {}
    return Event(*values)


def invocation_of(row: Sequence[Any]) -> Invocation | Unread:
    """Return an invocation of a recorder's row."""
    fields = dict(zip(INVOCATION_FIELDS, row, strict=True))
    fields["result_tokens"], fields["result_digests"] = results_of(fields["results"])
    return _invocation(fields, _shaped)


def unlanded(event: Event) -> Unread:
    """Return the invocation that an event says had not ended when the recording did.

    Its requests can only go on if it did its step: tokens may be there before it has ended.
    """
    return Unread(
        event.value if event.value is not None else -1,
        list(event.extras.get("request_ids") or ()),
        event.extras.get("phase") or "",
        "not ended when the recording did",
        landed=False,
    )


def tabled_events(table: pa.Table) -> Iterator[Event]:
    """Yield the events of a table `events`, in its order."""
    columns = [
        table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        for name in Event._fields
    ]
    columns[_PAGES] = [tuple(pages or ()) for pages in columns[_PAGES]]
    extras: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]
    for name in EVENT_EXTRAS:
        if name in table.column_names and name not in Event._fields:
            column = table[name].combine_chunks()
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            for row, value in zip(rows.tolist(), column.drop_null().to_pylist(), strict=True):
                extras[row][name] = value
    columns[_EXTRAS] = extras
    for values in zip(*columns, strict=True):
        yield Event(*values)


def tabled_invocations(table: pa.Table) -> Iterator[tuple[int, int, Invocation | Unread]]:
    """Yield seq, end_seq and invocation for each row of a table `invocations`.

    Raises RunError if an invocation has no place among the events, or no requests.
    """
    for row in table.to_pylist():
        if any(row[name] is None for name in ("seq", "end_seq", "request_ids")):
            raise RunError(
                f"Invocation {row['invocation_id']} has no place among the events or no requests:"
                " record"
                " the run again."
            )
        yield row["seq"], row["end_seq"], _invocation(row, _nested)


def _invocation(f: dict[str, Any], array: Any) -> Invocation | Unread:
    if f.get("error") is not None:
        # Of a call that failed the arrays may still be what the call before it left in them.
        reason = "the call raised an error"
        return Unread(f["invocation_id"], list(f["request_ids"]), f["phase"], reason, done=False)
    if any(f[name] is None for name in ("tokens", "seq_lens", "block_tables")):
        return Unread(f["invocation_id"], list(f["request_ids"]), f["phase"])
    starts = f["start_positions"]
    return Invocation(
        invocation_id=f["invocation_id"],
        phase=f["phase"],
        request_ids=list(f["request_ids"]),
        tokens=array(f["tokens"]),
        seq_lens=array(f["seq_lens"]),
        starts=None if starts is None else array(starts),
        tables=array(f["block_tables"]),
        seq=f["seq"],
        end_seq=f["end_seq"],
        thread=f["thread"],
        t_s=f["t_s"],
        result_tokens=f.get("result_tokens"),
        result_digests=f.get("result_digests"),
        changed=f.get("changed"),
    )


def _shaped(value: tuple[tuple[int, ...], Any]) -> Ints:
    shape, flat = value
    return np.asarray(flat, dtype=np.int64).reshape(shape)


def _nested(value: Any) -> Ints:
    return np.array(value, dtype=np.int64)
