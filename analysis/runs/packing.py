"""Packed runs: one file a table, for sharing."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError
from analysis.runs.manifest import read_manifest, write_manifest
from analysis.runs.parts import REQUIRED, write_tables
from analysis.runs.schema import SCHEMA_VERSION, TABLES
from analysis.runs.store import whole_tables

_POOL = ("acquire", "free", "evict")
"""Events of a light run: they show how many pages are free, and evictions."""
_HEAVY = {"events": ("stack",), "findings": ("stack", "other_stack")}
"""Columns that a light run does not have."""


def pack_runs(paths: Sequence[str | Path], out: str | Path, *, light: bool = False) -> Path:
    """Write runs to the new directory `out` as one run with one file a table, for sharing.

    `load_run` can read it, but it cannot be resumed. If there are several, each trial's id begins
    with the number of its run, and the manifest is the first run's with the plans of all.

    `light` leaves out invocations, stacks, events other than those of the pool, and all but the
    last snapshot of a trial. Figures and tables of trials, requests and findings need no more.

    Raises RunError if a run cannot be read, or if `out` exists or cannot be written.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise RunError(f"{out} exists. Choose a new directory for the packed run.")
    manifests = [read_manifest(path) for path in paths]
    parts = [
        whole_tables(Path(path), manifest, TABLES)
        for path, manifest in zip(paths, manifests, strict=True)
    ]
    if len(parts) > 1:
        parts = [
            {name: _numbered(table, number) for name, table in part.items()}
            for number, part in enumerate(parts)
        ]
    tables = {name: pa.concat_tables([part[name] for part in parts]) for name in TABLES}
    manifest: dict[str, Any] = dict(manifests[0])
    if len(manifests) > 1:
        manifest["plans"] = [one.get("plan") for one in manifests]
        manifest.pop("plan", None)
    if light:
        tables = _light(tables)
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        write_tables(temporary, {n: t for n, t in tables.items() if t.num_rows or n in REQUIRED})
        write_manifest(temporary, {**manifest, "schema_version": SCHEMA_VERSION, "packed": True})
        os.replace(temporary, out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _numbered(table: pa.Table, number: int) -> pa.Table:
    ids = pc.binary_join_element_wise(str(number), table["trial_id"], "/")
    place = table.schema.get_field_index("trial_id")
    return table.set_column(place, table.schema.field(place), ids)


def _light(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    light = dict(tables)
    light["invocations"] = TABLES["invocations"].empty_table()
    events, snapshots = tables["events"], tables["snapshots"]
    light["events"] = events.filter(pc.is_in(events["kind"], pa.array(_POOL)))
    ends = snapshots.group_by("trial_id").aggregate([("seq", "max")])
    last = dict(zip(ends["trial_id"].to_pylist(), ends["seq_max"].to_pylist(), strict=True))
    places = zip(snapshots["trial_id"].to_pylist(), snapshots["seq"].to_pylist(), strict=True)
    ended = [last[trial] == seq for trial, seq in places]
    light["snapshots"] = snapshots.filter(pa.array(ended, pa.bool_()))
    for name, columns in _HEAVY.items():
        for column in columns:
            field = light[name].schema.field(column)
            place = light[name].schema.get_field_index(column)
            empty = pa.nulls(light[name].num_rows, field.type)
            light[name] = light[name].set_column(place, field, empty)
    return light
