"""The sanitizer over what a run recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from analysis.errors import RunError
from analysis.sanitize.checker import Checker
from analysis.sanitize.findings import Findings
from analysis.sanitize.stream import tabled_events, tabled_flights
from analysis.snapshot import Snapshot
from analysis.store import cell_tables, read_manifest

_STRIDE = 16
"""Tokens of a page where no flight shows it."""


def check_run(path: str | Path) -> Iterator[tuple[str, Findings | None]]:
    """Check the cells of a run one after another; yield each one's id and findings.

    None stands for a cell that was not observed. Raises RunError if `path` is no run or damaged.
    """
    read_manifest(path)
    for cell_id, tables in cell_tables(path, ("events", "flights", "snapshots")):
        yield cell_id, check_tables(tables)


def check_tables(tables: Mapping[str, pa.Table]) -> Findings | None:
    """Check what was recorded of one cell, by the names of its tables; None if nothing was."""
    if "snapshots" not in tables or "events" not in tables or not tables["snapshots"].num_rows:
        return None
    rows = tables["snapshots"].sort_by("seq").to_pylist()
    snapshots = [Snapshot.from_row(row) for row in rows]
    flights = tables.get("flights")
    stride = _stride(flights)
    if snapshots[0].seq is None:
        raise RunError("The snapshots have no place among the events: record the run again.")
    checker = Checker(snapshots[0], stride)
    for snapshot in snapshots[1:]:
        checker.put_snapshot(snapshot)
    for event in tabled_events(tables["events"]):
        checker.put(event.seq, event)
    for seq, end_seq, flight in tabled_flights(flights) if flights is not None else ():
        checker.put(seq, flight)
        checker.put(end_seq, None)
    return checker.finish()


def _stride(flights: pa.Table | None) -> int:
    """Return the tokens of a page, as a prefill shows them: its length over its blocks."""
    if flights is None:
        return _STRIDE
    for row in flights.filter(pc.field("phase") == "prefill").slice(0, 20).to_pylist():
        if row["tokens"] and row["block_tables"] and row["start_positions"] is None:
            return len(row["tokens"][0]) // len(row["block_tables"][0])
    return _STRIDE
