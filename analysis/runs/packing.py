"""Packed runs: one file a table, for sharing."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
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
_HEAVY = {"events": ("stack",), "findings": ("stack", "other_stack"), "trials": ("engine_log",)}
"""Columns that are null in a light run."""


def pack_runs(paths: Sequence[str | Path], out: str | Path, *, light: bool = False) -> Path:
    """Write runs to the new directory `out` as one run with one file a table, for sharing.

    `load_run` can read it, but it cannot be resumed. If there are several, each trial's id begins
    with the number of its run, and the manifest is the first run's without plan, with the manifests
    of all under `runs`.

    `light` leaves out invocations, stacks, logs, events other than those of the pool, and all but
    the last snapshot of a trial. Figures and tables of trials, requests and findings need no more,
    but such a run cannot be checked again or explained.

    Raises RunError if a run cannot be read, if their models differ, or if `out` exists or cannot be
    written.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise RunError(f"{out} exists. Choose a new directory for the packed run.")
    manifests = [read_manifest(path) for path in paths]
    models = {(one.get("plan") or {}).get("model") for one in manifests}
    if len(models) > 1:
        raise RunError("Runs of different models cannot become one run. Give runs of one model.")
    runs = [_tables(Path(path), manifest) for path, manifest in zip(paths, manifests, strict=True)]
    manifest: dict[str, Any] = dict(manifests[0])
    if len(runs) > 1:
        runs = [
            {name: _numbered(table, number, manifest) for name, table in run.items()}
            for number, run in enumerate(runs)
        ]
        manifest["runs"] = manifests
        manifest.pop("plan", None)
    tables = {name: pa.concat_tables([run[name] for run in runs]) for name in TABLES}
    if light:
        tables, manifest["light"] = _light(tables), True
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


def _tables(path: Path, manifest: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Read the tables of a run; its files are named relative to it."""
    tables = whole_tables(path, manifest, TABLES)
    trials = tables["trials"]
    detail = pc.replace_substring(trials["status_detail"], f"{path.resolve()}/", "")
    return {**tables, "trials": _set(trials, "status_detail", detail)}


def _numbered(table: pa.Table, number: int, manifest: Mapping[str, Any]) -> pa.Table:
    """Return a table with a number before each trial's id, as of the run of `manifest`."""
    ids = pc.binary_join_element_wise(str(number), table["trial_id"], "/")
    table = _set(table, "trial_id", ids)
    if "run_id" in table.column_names and "run_id" in manifest:
        table = _set(table, "run_id", pa.array([manifest["run_id"]] * table.num_rows, pa.string()))
    return table


def _set(table: pa.Table, column: str, values: Any) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), values)


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
            kind = light[name].schema.field(column).type
            light[name] = _set(light[name], column, pa.nulls(light[name].num_rows, kind))
    return light
