"""Packed runs: one file a table, for sharing; also all runs of a directory, as of a notebook."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError
from analysis.core.wording import short_files
from analysis.runs.derive import failed_requests
from analysis.runs.manifest import MANIFEST, is_whole, read_manifest, write_manifest
from analysis.runs.parts import REQUIRED, write_tables
from analysis.runs.schema import SCHEMA_VERSION, TABLES
from analysis.runs.store import whole_tables
from analysis.runs.tables import is_control, to_frame

_POOL = ("acquire", "free", "evict")
"""Events of a light run: they show how many pages are free, and evictions."""
_HEAVY = {
    "events": ("stack",),
    "findings": ("stack", "other_stack"),
    "invocations": (
        "request_ids", "tokens", "seq_lens", "start_positions", "block_tables", "top_tokens",
        "top_logprobs", "result_tokens", "result_digests", "changed",
    ),
    "trials": ("engine_log",),
}  # fmt: skip
"""Columns that are null in a light run, but for its whole trials."""


def pack_runs(paths: Sequence[str | Path], out: str | Path, *, light: bool = False) -> Path:
    """Write runs to the new directory `out` as one run with one file a table, for sharing.

    `load_run` can read it, but it cannot be resumed. If there are several, each trial's id begins
    with the number of its run, and the manifest is the first run's without plan, with the manifests
    of all under `runs`.

    `light` leaves out the arguments and results of invocations, stacks, logs, events other than
    those of the pool, and all but the last snapshot of a trial. Figures and tables of trials,
    requests and findings need no more, but such a run cannot be checked again. Of each run one or
    two trials with failures are kept whole, so that these can be explained.

    Raises RunError if a run cannot be read, if their models differ, or if `out` exists or cannot be
    written.
    """
    out = new_place(out)
    manifests = [read_manifest(path) for path in paths]
    models = {(one.get("plan") or {}).get("model") for one in manifests}
    if len(models) > 1:
        raise RunError("Runs of different models cannot become one run. Give runs of one model.")
    runs = [_tables(Path(path), manifest) for path, manifest in zip(paths, manifests, strict=True)]
    whole = [_whole(run, manifest, light) for run, manifest in zip(runs, manifests, strict=True)]
    manifest: dict[str, Any] = dict(manifests[0])
    if len(runs) > 1:
        runs = [
            {name: _numbered(table, number, manifest) for name, table in run.items()}
            for number, run in enumerate(runs)
        ]
        whole = [{f"{number}/{name}" for name in names} for number, names in enumerate(whole)]
        manifest["runs"] = manifests
        manifest.pop("plan", None)
    tables = {name: pa.concat_tables([run[name] for run in runs]) for name in TABLES}
    if light or any(one.get("light") for one in manifests):
        manifest.update(light=True, whole_trials=sorted(set().union(*whole)))
    if light:
        tables = _light(tables, manifest["whole_trials"])
    with whole_or_not(out) as temporary:
        write_tables(temporary, {n: t for n, t in tables.items() if t.num_rows or n in REQUIRED})
        write_manifest(temporary, {**manifest, "schema_version": SCHEMA_VERSION, "packed": True})
    return out


def pack_directory(directory: str | Path, out: str | Path, *, light: bool = False) -> Path:
    """Copy a directory to the new one `out`, with every run in it packed as by `pack_runs`.

    What notebooks measured and wrote (`.msgpack` and `.json` files) is copied; logs and the like
    are left out. Raises RunError if there is nothing of these, if tables have no manifest, and as
    `pack_runs` does.
    """
    directory, out = Path(directory), new_place(out)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    runs = [path.parent for path in files if path.name == MANIFEST]
    others = [path for path in files if not any(path.is_relative_to(run) for run in runs)]
    if tables := [path for path in others if path.suffix == ".parquet"]:
        raise RunError(
            f"{tables[0].parent} has tables, but no {MANIFEST} is there or above it in {directory}."
            " Restore it, or give the run's own directory."
        )
    others = [path for path in others if path.suffix in (".json", ".msgpack")]
    if not runs and not others:
        raise RunError(f"{directory} has neither runs nor results. Give a directory with runs.")
    with whole_or_not(out) as temporary:
        for run in runs:
            pack_runs([run], temporary / run.relative_to(directory), light=light)
        for path in others:
            place = temporary / path.relative_to(directory)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return out


def new_place(out: str | Path) -> Path:
    """Return the path of a copy; raise RunError if something is there."""
    if os.path.lexists(out):
        raise RunError(f"{out} exists. Choose a new directory for the copy.")
    return Path(out)


@contextmanager
def whole_or_not(out: Path) -> Iterator[Path]:
    """Yield a directory beside `out` that takes its name when the block has succeeded.

    Raises RunError if it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tables(path: Path, manifest: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Read the tables of a run; paths of its files and of modules are shortened."""
    tables = whole_tables(path, manifest, TABLES)
    trials = tables["trials"]
    for column in ("status_detail", "engine_log"):
        text = pc.replace_substring(trials[column], f"{path.resolve()}/", "")
        texts = [value and short_files(value) for value in text.to_pylist()]
        trials = _set(trials, column, pa.array(texts, pa.string()))
    return {**tables, "trials": trials}


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


def _whole(tables: Mapping[str, pa.Table], manifest: Mapping[str, Any], light: bool) -> set[str]:
    """Return the trials of a run that are whole in its copy."""
    every = set(tables["trials"]["trial_id"].to_pylist())
    there = {name for name in every if is_whole(manifest, name)}
    return there & _to_explain(tables) if light else there


def _to_explain(tables: Mapping[str, pa.Table]) -> set[str]:
    """Return the trials to keep whole: of the first failure to explain, and the first in order.

    If no request failed: the first in which wrong data was read, else that of any finding.
    """
    trials, requests = (to_frame(name, tables[name]) for name in ("trials", "requests"))
    trials = trials[~trials["treatments"].map(is_control)]
    failed = failed_requests(requests[requests["trial_id"].isin(trials["trial_id"])], trials)
    if len(failed):
        failed = failed[failed["treatments"].map(bool) == bool(failed["treatments"].iloc[0])]
        in_order = trials.loc[trials["trial_id"].isin(failed["trial_id"]), "trial_id"]
        return {failed["trial_id"].iloc[0], in_order.iloc[0]}
    found = tables["findings"].select(["trial_id", "severity"]).to_pylist()
    found = [row for row in found if row["trial_id"] in set(trials["trial_id"])]
    found.sort(key=lambda row: row["severity"] != "wrong data")
    return {row["trial_id"] for row in found[:1]}


def _light(tables: dict[str, pa.Table], whole: Sequence[str]) -> dict[str, pa.Table]:
    light = dict(tables)
    kept = {
        name: pc.is_in(light[name]["trial_id"], pa.array(whole, pa.string())) for name in TABLES
    }
    events, snapshots = tables["events"], tables["snapshots"]
    pool = pc.is_in(events["kind"], pa.array(_POOL))
    ends = snapshots.group_by("trial_id").aggregate([("seq", "max")])
    last = dict(zip(ends["trial_id"].to_pylist(), ends["seq_max"].to_pylist(), strict=True))
    places = zip(snapshots["trial_id"].to_pylist(), snapshots["seq"].to_pylist(), strict=True)
    ended = pa.array([last[trial] == seq for trial, seq in places], pa.bool_())
    rows = {"events": pc.or_(pool, kept["events"]), "snapshots": pc.or_(ended, kept["snapshots"])}
    for name, columns in _HEAVY.items():
        for column in columns:
            values = light[name][column]
            null = pa.nulls(len(values), values.type)
            light[name] = _set(light[name], column, pc.if_else(kept[name], values, null))
    return {name: table.filter(rows[name]) if name in rows else table
            for name, table in light.items()}  # fmt: skip
