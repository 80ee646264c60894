"""The items of a trace, events and invocations, from a recorder or from a run's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from analysis.core.errors import RunError
from analysis.recording.recorder import EVENT_FIELDS, INVOCATION_FIELDS
from analysis.runs.schema import EVENT_EXTRAS
from analysis.sanitizer.shadow import Ints
from analysis.shortfin.verify import digest_of, results_of


class Event(NamedTuple):
    """A row of the table `events`."""

    seq: int
    t_s: float
    thread: str | None
    request_id: str | None
    operation: str | None
    kind: str
    pages: tuple[int, ...]
    free_pages: int | None
    node: int | None
    parent: int | None
    ref_before: int | None
    ref_count: int | None
    value: int | None
    digest: int | None
    locks: tuple[str, ...] | None
    stack: Any
    extras: Mapping[str, Any] = {}
    """Columns that only some kinds have (`EVENT_EXTRAS`), except `digest`."""

    @property
    def request(self) -> str:
        """The request; "" without one."""
        return self.request_id or ""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of a prompt, an answer or a node."""
        return tuple(self.extras.get("tokens") or ())

    @property
    def outcome(self) -> str | None:
        """How a request ended."""
        return self.extras.get("outcome")

    @property
    def message(self) -> str | None:
        """Text of an error."""
        return self.extras.get("message")


@dataclass
class Result:
    """The result of one row of an invocation."""

    invocation_id: int
    digest: int
    """Digest of the logits."""
    token: int
    """Argmax of the logits; negative if a logit is NaN."""
    used: bool = False
    """Whether a token was chosen from these logits."""


@dataclass(eq=False)
class Invocation:
    """A call of the compiled model, with its arguments as the device got them."""

    invocation_id: int
    phase: str
    request_ids: list[str]
    tokens: Ints
    """[rows, 1] of a decode, [rows, length] of a prefill; int64, as the others."""
    seq_lens: Ints
    """[rows]"""
    starts: Ints | None
    """[rows]; None for a prefill from the first position on."""
    tables: Ints
    """Block tables, [rows, blocks]."""
    seq: int
    end_seq: int
    thread: str | None
    t_s: float
    result_tokens: list[int] | None = None
    """Argmax of each real row's logits, -1 for NaN; None if not recorded."""
    result_digests: list[int] | None = None
    """Digest of each real row's logits."""
    changed: Iterable[Mapping[str, Any]] | None = None
    """Arguments that changed during the call: column `changed`."""

    def result(self, row: int) -> Result | None:
        """Return the result of a real row; None if it was not recorded."""
        if not self.result_tokens or not self.result_digests:
            return None
        return Result(self.invocation_id, self.result_digests[row], self.result_tokens[row])

    def request_of(self, row: int) -> str | None:
        """Return the request of a row, None for a padding row."""
        return self.request_ids[row] if row < len(self.request_ids) else None

    @property
    def real(self) -> int:
        """Rows that carry a request; the others are padding."""
        return len(self.request_ids)


@dataclass(eq=False)
class UnknownInvocation:
    """An invocation that failed, did not finish, or has unknown arguments."""

    invocation_id: int
    request_ids: list[str]
    phase: str = ""
    reason: str = "its arguments could not be read"
    """Why it cannot be checked."""
    done: bool = True
    """Whether it may have executed its step."""
    finished: bool = True


Item = Event | Invocation | UnknownInvocation

_EVENT = [EVENT_FIELDS.index(name) if name in EVENT_FIELDS else None for name in Event._fields]
_T_S, _PAGES = Event._fields.index("t_s"), Event._fields.index("pages")
_DIGEST, _EXTRAS = Event._fields.index("digest"), Event._fields.index("extras")
_T_NS = EVENT_FIELDS.index("t_ns")


def event_of(row: Sequence[Any]) -> Event:
    """Return the event of a recorder's row."""
    values: list[Any] = [None if place is None else row[place] for place in _EVENT]
    values[_PAGES] = tuple(values[_PAGES] or ())
    values[_T_S] = row[_T_NS] / 1e9
    values[_DIGEST] = digest_of(values[_DIGEST])
    values[_EXTRAS] = values[_EXTRAS] or {}
    return Event(*values)


def invocation_of(row: Sequence[Any]) -> Invocation | UnknownInvocation:
    """Return the invocation of a recorder's row."""
    fields = dict(zip(INVOCATION_FIELDS, row, strict=True))
    fields["result_tokens"], fields["result_digests"] = results_of(fields["results"])
    return _invocation(fields, _shaped)


def unfinished(event: Event) -> UnknownInvocation:
    """Return the invocation of an event `invocation_unfinished`.

    Tokens may arrive before it ends, so its step counts as executed if its requests continue.
    """
    return UnknownInvocation(
        event.value if event.value is not None else -1,
        list(event.extras.get("request_ids") or ()),
        event.extras.get("phase") or "",
        "not finished at the end of the recording",
        finished=False,
    )


def events_of_table(table: pa.Table) -> Iterator[Event]:
    """Yield the events of a table `events` in its order."""
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


def invocations_of_table(
    table: pa.Table,
) -> Iterator[tuple[int, int, Invocation | UnknownInvocation]]:
    """Yield seq, end_seq and invocation for each row of a table `invocations`.

    Raises RunError if an invocation has no `seq` or no requests.
    """
    for row in table.to_pylist():
        if any(row[name] is None for name in ("seq", "end_seq", "request_ids")):
            raise RunError(
                f"Invocation {row['invocation_id']} has no sequence number or no requests. Record"
                " the run again."
            )
        yield row["seq"], row["end_seq"], _invocation(row, _nested)


def _invocation(f: dict[str, Any], array: Any) -> Invocation | UnknownInvocation:
    if f.get("error") is not None:
        # The arrays of a failed call may hold the arguments of the previous call.
        reason = "the call raised an error"
        return UnknownInvocation(
            f["invocation_id"], list(f["request_ids"]), f["phase"], reason, done=False
        )
    if any(f[name] is None for name in ("tokens", "seq_lens", "block_tables")):
        return UnknownInvocation(f["invocation_id"], list(f["request_ids"]), f["phase"])
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
