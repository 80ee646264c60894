"""The tables of a run, declared once: every column with its type, its unit and what it means."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from analysis.core.errors import RunError, shown
from analysis.runs.former_codes import with_codes

OUTCOMES = ("ok", "wrong", "empty", "rejected", "error", "timeout", "lost")
FAILURES = tuple(name for name in OUTCOMES if name not in ("ok", "rejected"))
"""The outcomes of failed requests, everywhere: every outcome but `ok` and `rejected`."""
TRIAL_STATUS = ("ok", "engine_died", "hung", "crashed")

EVENT_KINDS = {
    "submitted": "a request was sent in",
    "first_token": "its first token arrived",
    "token": "a further token arrived",
    "chosen": "its next token was chosen; detail is the digest of the logits that it came from",
    "answered": "the engine delivered an answer; detail is its tokens, value how many it makes",
    "done": "it ended; detail says how",
    "acquire": "pages were taken from the pool",
    "shortage": "the pool had too few pages; detail says how many were wanted",
    "free": "pages were handed to the pool",
    "hold": "a request holds these pages from now on",
    "drop": "a request holds these pages no longer",
    "duplicate": "pages that repeat cached ones were set aside, to be freed with the next release",
    "copy": "a page was copied; pages are source and target",
    "match": "a prefix was looked up in the trie, up to this node",
    "detached": "a node's parent pointer, `parent`, is not the node that has it as a child",
    "unprotected": "a request flies on although nothing refers to the node that it goes on from",
    "unlisted": "the cache's list of allocated pages was asked for these, and lacks them",
    "create": "a node was put into the trie",
    "replace": "a node lost its place under its parent to a new one of the same tokens",
    "unlink": "a node was taken out of the trie",
    "evict": "pages were evicted from the trie",
    "reference": "the references to a node changed",
    "leaf": "a node was put into the set of leaves",
    "no_leaf": "a node was taken out of the set of leaves",
    "operation": "an operation of the cache ended",
    "failed": "an operation of the cache raised an error; detail says which",
    "memory": "resident memory of the process was read",
    "died": "a worker of the engine died; detail says how",
    "late": "the engine ended a request that had an end already; detail says how",
    "unlanded": "invocation `value` began here and had not ended when the recording did",
    "unfinished": "an operation of the cache was under way here when the recording ended",
    "cut": "the recording ends here, up to `value` ns before its process; detail lists the requests"
    " without an end in it",
    "waiting": "a request was given up; detail says where it was and what every thread did",
    "twice": "a request's list of pages has these more than once",
    "nonfinite": "a page that was flown holds NaN or infinity, first in the slot `value`",
    "checksums": "the bytes of pages are checked from here on, or no more; detail says how far",
    "bytes_changed": "slots of a page hold other bytes, and nothing wrote them; detail says which",
    "bytes_kept": "slots hold what they held before the invocation `value` wrote them, or zeros",
    "written_after_free": "a page that comes out of quarantine was written since it was freed",
    "snapshot": "a snapshot was taken",
    "observer_error": "watching failed at this point; detail says how",
}
"""What an event says happened."""
FAULT = "fault:"
"""How the names of treatments begin that plant a fault, as a control."""
MOMENTS = ("before", "after", "failure", "asked")

_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_INTS, _TEXTS = pa.list_(pa.int32()), pa.list_(pa.string())
_REALS = pa.list_(pa.list_(_REAL))


def _column(name: str, kind: pa.DataType, doc: str, unit: str = "", null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"doc": doc, "unit": unit})


def _maybe(name: str, kind: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    return _column(name, kind, doc, unit, null=True)


_TRIAL_ID = _column("trial_id", _TEXT, "the trial that this row belongs to")

TABLES: dict[str, pa.Schema] = {
    "trials": pa.schema(
        [
            _column("run_id", _TEXT, "the run that this trial belongs to"),
            _column("trial_id", _TEXT, "one configuration and repeat; unique within a run"),
            _column("release", _TEXT, "version of shortfin, such as 3.1.0"),
            _column("device", _TEXT, "where the engine ran: local-task or amdgpu"),
            _column("prefix_sharing", _TEXT, "algorithm of the prefix cache: none or trie"),
            _column("page_count", _INT, "size of the page pool", "pages"),
            _column("batch_sizes", _INTS, "batch sizes that the model was compiled for", "rows"),
            _column(
                "concurrency", _INT, "client threads, each with one request at a time", "requests"
            ),
            _column("repeat", _INT, "which repeat of its configuration, from 0"),
            _column("workload", _TEXT, "name of the workload"),
            _column("treatments", _TEXTS, "names of the changes made to the live engine"),
            _column("options", _TEXT, "further engine options, as a JSON object"),
            _maybe("seed", _INT, "seed of the prompts"),
            _column("status", _TEXT, f"how the trial ended: {', '.join(TRIAL_STATUS)}"),
            _maybe(
                "status_detail",
                _TEXT,
                "on a trial that did not end well, or was not all recorded or checked",
            ),
            _maybe("exit_signal", _INT, "the signal that ended the trial's process"),
            _column(
                "duration_s", _REAL, "from the start of the engine to the end of the trial", "s"
            ),
            _maybe(
                "peak_rss_bytes", _INT, "largest resident memory of the trial's process", "bytes"
            ),
            _maybe("engine_log", _TEXT, "what the engine printed"),
            _maybe("observed", _TEXT, "what was watched: nothing, events, or events and snapshots"),
            _maybe(
                "injected", _TEXT, "what a control's fault changed, as JSON; the text null: nothing"
            ),
        ]
    ),
    "requests": pa.schema(
        [
            _column("request_id", _TEXT, "unique within its trial"),
            _TRIAL_ID,
            _maybe("client", _INT, "which client thread sent it, from 0"),
            _maybe("position", _INT, "its place in its client's sequence, from 0"),
            _maybe("family", _TEXT, "kind of prompt within the workload"),
            _column("prompt", _TEXT, "what was asked"),
            _maybe("prompt_tokens", _INTS, "the same as token ids"),
            _maybe("expected_text", _TEXT, "what the answer must start with"),
            _maybe("reference_tokens", _INTS, "what the reference decoder answers, as token ids"),
            _maybe("text", _TEXT, "what the engine answered"),
            _maybe("tokens", _INTS, "the same as token ids"),
            _column("outcome", _TEXT, f"one of {', '.join(OUTCOMES)}"),
            _maybe("error", _TEXT, "what the engine said when it refused or failed"),
            _maybe(
                "first_divergence", _INT, "first token unlike the reference's, from 0", "tokens"
            ),
            _maybe("submitted_s", _REAL, "when it was sent, since the engine started", "s"),
            _maybe("latency_s", _REAL, "from sending it to its last token", "s"),
            _maybe("ttft_s", _REAL, "from sending it to its first token", "s"),
            _maybe("refusals", _INT, "times that it was refused before, and sent again"),
            _maybe("cached_tokens", _INT, "prompt tokens found in the prefix cache", "tokens"),
            _maybe("evictions_during", _INT, "pages evicted while it was served", "pages"),
            _maybe("pages_before", _INT, "pages in use before it", "pages"),
            _maybe("pages_after", _INT, "pages in use after it", "pages"),
            _maybe("unchecked", _INT, "calls of the model for it that no rule could be asked of"),
        ]
    ),
    "invocations": pa.schema(
        [
            _column("invocation_id", _INT, "number of this call of the compiled model, from 0"),
            _TRIAL_ID,
            _column("phase", _TEXT, "prefill or decode"),
            _column("rows", _INT, "rows that carry a request; the rest is padding", "rows"),
            _maybe("batch_size", _INT, "rows altogether, as the model was called", "rows"),
            _maybe("request_ids", _TEXTS, "the request of each row that carries one"),
            _maybe("tokens", pa.list_(_INTS), "token ids of every row, as the device got them"),
            _maybe("seq_lens", _INTS, "length that each row attends to", "tokens"),
            _maybe("start_positions", _INTS, "position of each row's first token", "tokens"),
            _maybe("block_tables", pa.list_(_INTS), "pages of each row, in order"),
            _maybe("seq", _INT, "its place among the events: when it started"),
            _maybe("end_seq", _INT, "its place among the events: when it ended"),
            _maybe("thread", _TEXT, "worker that called it"),
            _maybe("t_s", _REAL, "when it started, since the engine started", "s"),
            _maybe("duration_s", _REAL, "until the engine had its results", "s"),
            _maybe("error", _TEXT, "the error that the call raised"),
            _maybe("top_tokens", pa.list_(_INTS), "likeliest next tokens of each request's row"),
            _maybe(
                "top_logprobs", _REALS, "logarithms of their probabilities, as the engine has them"
            ),
            _maybe("result_tokens", _INTS, "likeliest next token of each request's row; -1 if NaN"),
            _maybe("result_digests", pa.list_(_INT), "digest of each request's logits"),
            _maybe("changed", _TEXT, "arguments not read as they were filled, as a JSON list"),
        ]
    ),
    "events": pa.schema(
        [
            _column("seq", _INT, "order of events within a trial"),
            _TRIAL_ID,
            _column("t_ns", _INT, "when, since the engine started", "ns"),
            _maybe("thread", _TEXT, "worker that did it"),
            _maybe("request_id", _TEXT, "request that it was done for"),
            _maybe("operation", _TEXT, "operation of the cache that it was part of"),
            _column("kind", _TEXT, f"what happened, one of {', '.join(EVENT_KINDS)}"),
            _maybe("pages", _INTS, "indices of the pages concerned"),
            _maybe("free_pages", _INT, "pages left in the pool", "pages"),
            _maybe("node", _INT, "node of the trie, the root being 0"),
            _maybe("parent", _INT, "its parent"),
            _maybe("ref_before", _INT, "references to it before"),
            _maybe("ref_count", _INT, "references to it afterwards"),
            _maybe("tokens_hit", _INT, "tokens found in the trie", "tokens"),
            _maybe("tokens_missed", _INT, "tokens not found there", "tokens"),
            _maybe("value", _INT, "token id; tokens that an ended request lacks; slot; bytes"),
            _maybe("detail", _TEXT, "what else there is to say"),
            _maybe("locks", _TEXTS, "the cache's locks under which it changed something"),
            _maybe("stack", _TEXT, "where in the engine's code, if asked for"),
        ]
    ),
    "snapshots": pa.schema(
        [
            _maybe("request_id", _TEXT, "request around which it was taken"),
            _TRIAL_ID,
            _column("moment", _TEXT, f"one of {', '.join(MOMENTS)}"),
            _maybe("seq", _INT, "its place among the events"),
            _maybe("t_s", _REAL, "when, since the engine started", "s"),
            _maybe("page_count", _INT, "size of the page pool", "pages"),
            _maybe("free", _INT, "pages in the pool", "pages"),
            _maybe("live", _INT, "pages held by requests", "pages"),
            _maybe("cached", _INT, "pages held by the prefix cache alone", "pages"),
            _maybe("leaked", _INT, "pages that nothing can reach", "pages"),
            _maybe("nodes", _INT, "nodes of the trie, without its root"),
            _maybe("leaves", _INT, "leaves of the trie, as the engine keeps them"),
            _maybe("consistent", pa.bool_(), "taken while no operation of the cache was under way"),
            _maybe("states", _TEXT, "a letter for every page: f free, l live, c cached, x leaked"),
            _maybe("holders", _TEXT, "pages by the request that holds them, as a JSON object"),
            _maybe("trie", _TEXT, "the trie's nodes, as a JSON list"),
            _maybe("duplicates", _INTS, "cached pages that repeat others, set aside to be freed"),
            _maybe(
                "misplaced",
                pa.list_(_INTS),
                "nodes that another node has as a child than they point to: node, pointer, parent",
            ),
            _maybe("allocated", _INTS, "the cache's own list of the pages that it gave out"),
            _maybe("conflicts", _TEXTS, "pages that are in two places at once, in words"),
        ]
    ),
    "findings": pa.schema(
        [
            _column("finding_id", _TEXT, "unique within its trial"),
            _TRIAL_ID,
            _column("rule", _TEXT, "name of the broken rule"),
            _maybe("cause", _TEXT, "in which way it was broken"),
            _maybe("severity", _TEXT, "wrong data read, or only a rule at risk"),
            _maybe("seq", _INT, "its place among the events: where it broke first"),
            _maybe("t_s", _REAL, "when, since the engine started", "s"),
            _maybe("count", _INT, "how often it broke so for this request"),
            _maybe("request_id", _TEXT, "request that suffered"),
            _maybe("other_request_id", _TEXT, "request whose data it met"),
            _maybe("page", _INT, "page concerned"),
            _maybe("slot", _INT, "slot within the page"),
            _maybe("invocation_id", _INT, "call of the model in which it was seen"),
            _column("message", _TEXT, "what happened, in one sentence"),
            _maybe("thread", _TEXT, "worker that did it"),
            _maybe("stack", _TEXT, "where in the engine's code"),
            _maybe("other_stack", _TEXT, "where the other one was in the engine's code"),
        ]
    ),
}

LACKING: dict[int, dict[str, tuple[str, ...]]] = {
    1: {
        "trials": ("observed", "injected"),
        "requests": ("refusals", "unchecked"),
        "invocations": (
            "top_tokens", "top_logprobs", "result_tokens", "result_digests", "changed",
        ),
        "events": ("locks",),
        "snapshots": ("allocated", "misplaced"),
    },
    2: {},
    3: {},
}  # fmt: skip
"""By schema version and table, the columns that a file may lack, as they were declared while that
version was in use: they are read as null. Every other column must be there."""
SCHEMA_VERSION = max(LACKING)
"""The version of what is written. Since 2, everything in a run has its checksum; since 3, tables
and columns have the names of `TABLES`, and not those of `FORMER`.
"""
FORMER = {
    "trials": "cells",
    "trial_id": "cell_id",
    "invocations": "flights",
    "invocation_id": "flight_id",
    "injected": "struck",
}
"""What tables and columns were called up to schema version 2."""


def former_name(name: str, version: int) -> str:
    """Return what a table or column is called in files of a schema version."""
    return FORMER.get(name, name) if version < 3 else name


_CHOICES = {
    ("requests", "outcome"): OUTCOMES,
    ("trials", "status"): TRIAL_STATUS,
    ("events", "kind"): tuple(EVENT_KINDS),
    ("snapshots", "moment"): MOMENTS,
}


@dataclass(frozen=True)
class RequestCounts:
    """How many requests failed, of how many accepted ones, and how many were rejected."""

    asked: int = 0
    failed: int = 0
    rejected: int = 0

    @property
    def accepted(self) -> int:
        """Requests that the engine took: the denominator of every failure rate."""
        return self.asked - self.rejected

    def __add__(self, other: RequestCounts) -> RequestCounts:
        return RequestCounts(
            self.asked + other.asked, self.failed + other.failed, self.rejected + other.rejected
        )

    def __str__(self) -> str:
        """Return the counts in words, rejected requests apart."""
        return (
            f"{self.failed} of {self.accepted} accepted requests failed, {self.rejected} rejected"
        )


def count_requests(outcomes: Mapping[str, int] | Iterable[str]) -> RequestCounts:
    """Count requests by their outcomes: one outcome a request, or a number for each outcome."""
    counts = Counter(outcomes)
    failed = sum(counts[name] for name in FAILURES)
    return RequestCounts(counts.total(), failed, counts["rejected"])


def is_control(treatments: Iterable[str]) -> bool:
    """Tell whether a trial with these treatments is a control, in which a fault was planted."""
    return any(name.startswith(FAULT) for name in treatments)


def arm_of(treatments: Iterable[str] | None) -> tuple[str, ...]:
    """Return a trial's treatments without a planted fault: the arm whose control it may be."""
    return tuple(name for name in treatments or () if not name.startswith(FAULT))


def treated(treatments: Iterable[str] | None) -> str:
    """Return how a set of treatments is called."""
    return " + ".join(treatments or ()) or "untreated"


def describe(name: str) -> pd.DataFrame:
    """Return the columns of a table as a frame: column, type, unit, may be null, meaning."""
    return pd.DataFrame(
        [
            {
                "column": field.name,
                "type": str(field.type),
                "unit": field.metadata[b"unit"].decode(),
                "null": field.nullable,
                "meaning": field.metadata[b"doc"].decode(),
            }
            for field in TABLES[name]
        ]
    )


def to_table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as an Arrow table with the declared columns; columns left out are null.

    Raises RunError for an unknown table, column, outcome or status, a value of a wrong type, or
    null where the schema wants a value.
    """
    if name not in TABLES:
        raise RunError(f"There is no table `{name}`: the tables are {', '.join(TABLES)}.")
    schema = TABLES[name]
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise RunError(f"The table `{name}` has no column {', '.join(sorted(unknown))}.")
    arrays = []
    for field in schema:
        try:
            array = pa.array(
                [row.get(field.name) for row in rows], type=field.type, from_pandas=True
            )
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RunError(
                f"A value of `{name}.{field.name}` is no {field.type}: {error}."
            ) from error
        _check(name, field, array)
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def checked(name: str, table: pa.Table) -> pa.Table:
    """Return an Arrow table as it is if it fits what is declared, with the declared schema.

    Raises RunError as `to_table` does, and for columns that are missing, of another type or in
    another order.
    """
    schema = TABLES.get(name)
    if schema is None:
        raise RunError(f"There is no table `{name}`: the tables are {', '.join(TABLES)}.")
    for field, wanted in zip_longest(table.schema, schema):
        if field is None or wanted is None or field.name != wanted.name:
            found, due = (f.name if f is not None else "nothing" for f in (field, wanted))
            raise RunError(f"The table `{name}` has the column {found} where {due} belongs.")
        if field.type != wanted.type:
            raise RunError(f"The column `{name}.{field.name}` is {field.type}, not {wanted.type}.")
        _check(name, wanted, table[field.name])
    return pa.Table.from_arrays(table.columns, schema=schema)


def as_declared(name: str, table: pa.Table, version: int) -> pa.Table:
    """Return a table that was read from a file of a schema version, with the declared schema.

    Raises RunError for a column that is unknown or there twice, one that is missing and must not be
    (`LACKING`), a value of another type, and whatever `to_table` refuses.
    """
    now = {former_name(field.name, version): field.name for field in TABLES[name]}
    table = table.rename_columns([now.get(column, column) for column in table.column_names])
    if name == "findings" and version < 3:
        table = with_codes(table)
    schema, names = TABLES[name], table.column_names
    if strange := [
        column for column in names if names.count(column) > 1 or column not in schema.names
    ]:
        raise RunError(
            f"The table `{name}` has a column {shown(strange[0])}, which is not declared."
        )
    arrays = []
    for field in schema:
        if field.name in names:
            array = table[field.name]
        elif field.name in LACKING[version].get(name, ()):
            array = pa.nulls(table.num_rows, field.type)
        else:
            raise RunError(f"The table `{name}` has no column {field.name}.")
        try:
            array = array if array.type == field.type else array.cast(field.type)
        except pa.ArrowException as error:
            raise RunError(
                f"The column `{name}.{field.name}` is {array.type}, not {field.type}."
            ) from error
        _check(name, field, array)
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def _check(name: str, field: pa.Field, array: pa.Array | pa.ChunkedArray) -> None:
    """Refuse null where there must be a value, and a value that is none of the choices."""
    if array.null_count and not field.nullable:
        raise RunError(f"`{name}.{field.name}` is empty in a row where it must have a value.")
    choices = _CHOICES.get((name, field.name))
    if choices and (strange := set(array.unique().to_pylist()) - set(choices)):
        raise RunError(
            f"`{name}.{field.name}` is one of {', '.join(choices)}, not {strange.pop()!r}."
        )


@contextmanager
def broken_json(what: str) -> Iterator[None]:
    """Raise RunError, which names `what`, where a text column's value is not the JSON it should be.

    Also to be put before a function.
    """
    try:
        yield
    except (json.JSONDecodeError, RecursionError) as error:
        raise RunError(
            f"{what} holds broken JSON ({error}): restore the run, or record it again."
        ) from error


def to_frame(name: str, rows: pa.Table | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a pandas frame with the columns of a table, in their declared order.

    Integers that may be missing become `Int64`, real numbers `float64` with NaN, lists tuples (so
    that they can be grouped by and compared), missing text and lists None or NaN.
    """
    table = rows if isinstance(rows, pa.Table) else to_table(name, rows)
    columns: dict[str, Any] = {}
    for field in TABLES[name]:
        column = table[field.name]
        if pa.types.is_list(field.type):
            values = _tuples(column.combine_chunks())
        elif pa.types.is_integer(field.type) and field.nullable:
            values = column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        else:
            values = column.to_pandas()
        columns[field.name] = values
    return pd.DataFrame(columns, columns=TABLES[name].names)


def _tuples(array: pa.ListArray) -> npt.NDArray[np.object_]:
    """Return lists as tuples, lists within them too; null as None.

    The items of all lists become Python objects at once, of which each tuple is a slice: a million
    short lists take a few tenths of a second.
    """
    frozen: npt.NDArray[np.object_] = np.full(len(array), None, dtype=object)
    if not len(array):
        return frozen
    inner, offsets = array.values, array.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    inner = inner.slice(first, last - first)
    items: Sequence[Any]
    if pa.types.is_list(inner.type):
        items = _tuples(inner).tolist()
    elif inner.null_count or not pa.types.is_integer(inner.type):
        items = inner.to_pylist()
    else:
        items = inner.to_numpy().tolist()
    bounds = offsets - first
    present = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
    starts, ends = bounds[present].tolist(), bounds[present + 1].tolist()
    flat = tuple(items)  # a slice of a tuple is a tuple
    with _no_collection():
        slices = [flat[start:end] for start, end in zip(starts, ends, strict=True)]
        # Not assigned as a list, which numpy would take for a matrix where all have one length.
        frozen[present] = np.fromiter(slices, dtype=object, count=len(slices))
    return frozen


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from going through a growing heap again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
