"""Rows, Arrow tables and frames with the declared columns, and counts of requests."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError, shown
from analysis.runs import former
from analysis.runs.schema import CHOICES, FAILURES, FAULT, TABLES

if TYPE_CHECKING:
    import pandas as pd  # takes most of the time in which a trial's process starts


@dataclass(frozen=True)
class RequestCounts:
    """Numbers of failed, accepted and rejected requests."""

    asked: int = 0
    failed: int = 0
    rejected: int = 0

    @property
    def accepted(self) -> int:
        """Requests that the engine accepted: the denominator of every failure rate."""
        return self.asked - self.rejected

    def __add__(self, other: RequestCounts) -> RequestCounts:
        return RequestCounts(
            self.asked + other.asked, self.failed + other.failed, self.rejected + other.rejected
        )

    def __str__(self) -> str:
        """Return the counts in words."""
        return (
            f"{self.failed} of {self.accepted} accepted requests failed, {self.rejected} rejected"
        )


def count_requests(outcomes: Mapping[str, int] | Iterable[str]) -> RequestCounts:
    """Count requests, from one outcome a request or from a number for each outcome."""
    counts = Counter(outcomes)
    failed = sum(counts[name] for name in FAILURES)
    return RequestCounts(counts.total(), failed, counts["rejected"])


def is_control(treatments: Iterable[str]) -> bool:
    """Return whether a trial with these treatments is a control, with an injected fault."""
    return any(name.startswith(FAULT) for name in treatments)


def arm_of(treatments: Iterable[str] | None) -> tuple[str, ...]:
    """Return a trial's treatments without the injected fault: the arm of a control."""
    return tuple(name for name in treatments or () if not name.startswith(FAULT))


def treated(treatments: Iterable[str] | None) -> str:
    """Return the name of a set of treatments."""
    return " + ".join(treatments or ()) or "untreated"


def describe(name: str) -> pd.DataFrame:
    """Return the columns of a table as a frame: column, type, unit, may be null, meaning."""
    import pandas as pd

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
    """Return rows as an Arrow table with the declared columns; missing columns are null.

    Raises RunError for an unknown table, column, outcome or status, a value of a wrong type, or
    null in a column that needs a value.
    """
    unknown = {key for row in rows for key in row} - set(_schema(name).names)
    if unknown:
        raise RunError(f"The table `{name}` has no column {', '.join(sorted(unknown))}.")
    return _fitted(
        name,
        lambda field: pa.array(
            [row.get(field.name) for row in rows], type=field.type, from_pandas=True
        ),
    )


def checked(name: str, table: pa.Table, *, cast: bool = False) -> pa.Table:
    """Return an Arrow table with the declared schema; `cast` converts columns of other types.

    Raises RunError as `to_table` does, and for columns that are missing, repeated or of another
    type.
    """
    schema, names = _schema(name), table.column_names
    if strange := [c for c in names if c not in schema.names or names.count(c) > 1]:
        raise RunError(f"The table `{name}` has an unknown column {shown(strange[0])}.")
    if missing := [c for c in schema.names if c not in names]:
        raise RunError(f"The table `{name}` has no column {missing[0]}.")
    if not cast:
        for field in schema:
            if (found := table.schema.field(field.name).type) != field.type:
                raise RunError(f"The column `{name}.{field.name}` is {found}, not {field.type}.")
    return _fitted(name, lambda field: table[field.name])


def as_declared(name: str, table: pa.Table, version: int) -> pa.Table:
    """Return a table of a file with some schema version, with the declared schema.

    Raises RunError as `checked` does.
    """
    if version in former.VERSIONS:
        table = former.updated(name, table, version)
    if name == "trials" and version <= former.WITHOUT_TARGET:
        known = table.column_names
        target = table["target"] if "target" in known else pa.nulls(table.num_rows, pa.string())
        rest = table.drop_columns(["target"]) if "target" in known else table
        table = rest.append_column("target", pc.fill_null(target, "engine"))
    return checked(name, table, cast=True)


def _schema(name: str) -> pa.Schema:
    if name not in TABLES:
        raise RunError(f"Unknown table `{name}`. The tables are {', '.join(TABLES)}.")
    return TABLES[name]


def _fitted(name: str, column: Callable[[pa.Field], pa.Array | pa.ChunkedArray]) -> pa.Table:
    """Return a table of these columns, each checked against its declaration."""
    schema, arrays = _schema(name), []
    for field in schema:
        try:
            array = column(field)
            array = array if array.type == field.type else array.cast(field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RunError(
                f"A value of `{name}.{field.name}` is not {field.type}: {error}."
            ) from error
        if array.null_count and not field.nullable:
            raise RunError(f"`{name}.{field.name}` is missing in a row, but needs a value.")
        choices = CHOICES.get((name, field.name))
        if choices and (strange := set(array.unique().to_pylist()) - set(choices)):
            raise RunError(
                f"`{name}.{field.name}` must be one of {', '.join(choices)}, not {strange.pop()!r}."
            )
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def broken_json(what: str) -> Iterator[None]:
    """Raise RunError, with `what` as its subject, if the block fails to parse JSON.

    Can also be used as a decorator.
    """
    try:
        yield
    except (json.JSONDecodeError, RecursionError) as error:
        raise RunError(
            f"{what} has invalid JSON ({error}). Restore the run, or record it again."
        ) from error


def to_frame(name: str, rows: pa.Table | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a pandas frame with the columns of a table, in their declared order.

    Nullable integers become `Int64`, real numbers `float64` with NaN, lists tuples (so that they
    can be grouped and compared), and missing text and lists None or NaN.
    """
    import pandas as pd

    table = rows if isinstance(rows, pa.Table) else to_table(name, rows)
    columns: dict[str, Any] = {}
    for field in TABLES[name]:
        column = table[field.name]
        if pa.types.is_list(field.type):
            columns[field.name] = _tuples(column.combine_chunks())
        elif pa.types.is_integer(field.type) and field.nullable:
            nullable = {pa.int64(): pd.Int64Dtype()}
            columns[field.name] = column.to_pandas(types_mapper=nullable.get)
        elif pa.types.is_struct(field.type):
            columns[field.name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            columns[field.name] = column.to_pandas()
    return pd.DataFrame(columns, columns=TABLES[name].names)


def _tuples(array: pa.ListArray) -> npt.NDArray[np.object_]:
    """Return lists as tuples, also nested ones; null becomes None.

    All items become Python objects in one step, and each tuple is a slice of them: a million short
    lists take a few tenths of a second.
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
        # Assigned one by one: numpy would convert lists of equal length to a matrix.
        frozen[present] = np.fromiter(slices, dtype=object, count=len(slices))
    return frozen


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable the garbage collector, which would scan a growing heap repeatedly."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
