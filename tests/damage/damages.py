"""The damaged runs of these tests: how a run is made, read, compared and altered."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from trace_builder import TraceBuilder

from analysis.runs.schema import TABLES
from analysis.runs.store import Run, load_run

MANIFEST = {
    "plan": {"releases": ["3.1.0"], "concurrency": [1], "repeats": 3, "model": None},
    "seed": 0,
    "command": "test",
    "run_id": "synthetic",
}
IDS = ("a", "b", "c")
A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24)
COMMANDS = ("plot", "check", "explain", "export", "list", "verify")


def story() -> TraceBuilder:
    """Return a trace that breaks a rule: a reads b's page."""
    trace = TraceBuilder()
    trace.submit("b", B)
    trace.allocate("b", 3)
    trace.prefill("b")
    trace.token("b", 25)
    trace.submit("a", A)
    trace.allocate("a", 1, 2)
    trace.prefill("a")
    trace.token("a", 17)
    trace.done("b")
    trace.done("a")
    return trace


def read(run: Path) -> Run:
    return load_run(run, controls=True)


def same(one: Run, other: Run) -> bool:
    return one.manifest == other.manifest and all(
        getattr(one, name).equals(getattr(other, name)) for name in TABLES
    )


def one_trial(made: Path, place: Path) -> Path:
    """Copy the run with its first trial only, which is read faster."""
    shutil.copytree(made, place)
    for name in IDS[1:]:
        shutil.rmtree(place / "trials" / name)
    return place


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 4
    file.write_bytes(content)


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a table and its checksum."""
    pq.write_table(change(pq.read_table(file)), file)
    sums = file.with_name("checksums.json")
    if sums.exists():
        listed = json.loads(sums.read_text())
        listed["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        sums.write_text(json.dumps(listed))


def with_value(table: Any, column: str, value: Any) -> Any:
    import pyarrow as pa

    field = table.schema.field(column)
    values = pa.array([value] * table.num_rows, type=field.type)
    return table.set_column(table.column_names.index(column), field, values)


def files_of(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
