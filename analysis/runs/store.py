"""A run on disk: `manifest.json`, and one directory of Parquet tables for every finished trial.

    RUN/manifest.json                      what was run, with what, on what, and how
    RUN/trials/TRIAL_ID/trials.parquet     one row
    RUN/trials/TRIAL_ID/requests.parquet   one row a request; further tables where recorded
    RUN/trials/TRIAL_ID/checksums.json     of each of these tables

A trial is stored atomically: its tables are written into a hidden directory, which is then renamed.
After a crash or a kill, the finished trials can be read, and the sweep can be resumed. Checksums
are verified when a run is read; runs of schema version 1 have none. `packing` writes runs with one
file a table, for sharing. The columns are declared in `schema`.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError
from analysis.core.files import names_in, to_disk, unreadable
from analysis.runs import former
from analysis.runs.lock import LOCK, alone_in, is_written
from analysis.runs.manifest import (
    MANIFEST,
    as_json,
    differences,
    new_manifest,
    planned,
    read_manifest,
    write_manifest,
)
from analysis.runs.parts import REQUIRED, Part, write_tables
from analysis.runs.schema import OUTCOMES, SCHEMA_VERSION, TABLES, TRIAL_STATUS
from analysis.runs.tables import checked, describe, is_control, to_frame, to_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LOCK", "MANIFEST", "OUTCOMES", "TABLES", "TRIAL_STATUS", "Run", "RunWriter", "alone_in",
    "concatenated", "describe", "differences", "is_written", "join_runs", "load_run",
    "load_run_trials", "new_manifest", "parts_of", "read_manifest", "to_frame",
    "to_table", "trial_tables",
]  # fmt: skip

_TRIAL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]{0,199}")
TEMPORARY = ".writing-"
TRIALS, LOGS, WORK = "trials", "logs", "work"


@dataclass(frozen=True)
class Run:
    """A run read from disk: each table is a frame with the declared columns, maybe without rows."""

    path: Path
    manifest: dict[str, Any]
    trials: pd.DataFrame
    requests: pd.DataFrame
    invocations: pd.DataFrame
    events: pd.DataFrame
    snapshots: pd.DataFrame
    findings: pd.DataFrame


class RunWriter:
    """Writes a run, trial by trial; can be killed at any moment."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Wrap a directory that is a run; use `create` or `resume` instead."""
        self.path = path
        self.manifest = manifest
        self._trials = path / TRIALS

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any]) -> RunWriter:
        """Start a run in a directory that is new or empty.

        Raises RunError if the directory is not empty or cannot be written.
        """
        path = Path(path)
        held = RunError(
            f"{path} already has a run. Resume it with its plan, or choose another directory."
        )
        if _is_run(path):
            raise held
        _refuse_foreign(path)
        whole = {"schema_version": SCHEMA_VERSION, **as_json(manifest)}
        try:
            (path / TRIALS).mkdir(parents=True, exist_ok=True)
            with alone_in(path):
                if _is_run(path):  # another process was faster; keep its manifest
                    raise held
                write_manifest(path, whole)
        except OSError as error:
            raise RunError(
                f"{path} cannot hold a run: {error}. Choose a writable directory."
            ) from error
        return cls(path, whole)

    @classmethod
    def resume(cls, path: str | Path, manifest: Mapping[str, Any]) -> RunWriter:
        """Resume the run at `path`, or start a new one if there is nothing.

        The stored manifest is kept. Raises RunError if `path` has other files, or a run with a
        different `plan` or `seed`.
        """
        path = Path(path)
        if not _is_run(path):
            return cls.create(path, manifest)
        stored, wanted = read_manifest(path), as_json(manifest)
        if is_packed(path, stored):
            raise RunError(f"{path} is a packed run, which is finished. Choose another directory.")
        if stored["schema_version"] in former.VERSIONS:
            raise RunError(
                f"{path} is a run of an earlier version, which can only be read. Choose another"
                " directory."
            )
        if "run_id" in wanted and not isinstance(stored.get("run_id"), str):
            raise RunError(
                f"{path / MANIFEST} has no run id, so the run cannot be resumed. Restore it, or"
                " choose another directory."
            )
        _refuse_other_plan(path, stored, wanted)
        try:
            (path / TRIALS).mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{path / TRIALS} cannot be made: {error.strerror}.") from error
        writer = cls(path, stored)
        writer._sweep_leftovers()
        return writer

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        manifest = {**self.manifest, **as_json(facts)}
        write_manifest(self.path, manifest)
        self.manifest = manifest

    def write_trial(
        self,
        trial: Mapping[str, Any],
        requests: Sequence[Mapping[str, Any]],
        **other_tables: Sequence[Mapping[str, Any]] | pa.Table,
    ) -> Path:
        """Write all tables of one trial atomically, and return its directory.

        `trial` is its row of `trials`; `other_tables` are rows or Arrow tables by table name; empty
        ones are not written. Raises RunError for an unknown table or column, a value of a wrong
        type, a row of another trial, or a trial that exists.
        """
        trial_id = str(trial.get("trial_id", ""))
        if not _TRIAL_ID.fullmatch(trial_id):
            raise RunError(
                f"The trial id {trial_id!r} cannot name a directory. Use letters, digits and ._+=,-"
            )
        rows = {"trials": [trial], "requests": requests, **other_tables}
        # Convert first, so that nothing is written unless every row fits its schema.
        tables = {
            name: checked(name, content)
            if isinstance(content, pa.Table)
            else to_table(name, content)
            for name, content in rows.items()
            if len(content) or name in REQUIRED
        }
        for name, table in tables.items():
            if any(value != trial_id for value in table["trial_id"].unique().to_pylist()):
                raise RunError(f"A row of `{name}` belongs to another trial, not to {trial_id}.")
        target = self._trials / trial_id
        temporary = self._trials / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            write_tables(temporary, tables)
            os.replace(temporary, target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if target.exists():
                raise RunError(
                    f"{target} exists. A finished trial is never written again."
                ) from error
            raise RunError(f"{target} cannot be written: {error}.") from error
        with suppress(OSError):  # the rename is done, and synced with the next trial
            to_disk(self._trials)
        return target

    def _sweep_leftovers(self) -> None:
        """Remove unfinished directories of writers that have ended."""
        for path in self._trials.glob(f"{TEMPORARY}*"):
            owner = path.name.removeprefix(TEMPORARY).split("-")[0]
            if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
                shutil.rmtree(path, ignore_errors=True)


def load_run(path: str | Path, *, controls: bool = False) -> Run:
    """Read the run at `path`, and verify all checksums.

    Rows are in the order of trial ids. Trials with an injected fault are left out of every table
    unless `controls` is set. Raises RunError, with the file, if `path` is not a run, or if a file
    is missing, damaged, unreadable or from another run.
    """
    path = Path(path)
    manifest = read_manifest(path)
    frames = {
        name: to_frame(name, table) for name, table in whole_tables(path, manifest, TABLES).items()
    }
    if not controls:
        trials = frames["trials"]
        planted = trials["treatments"].map(lambda names: is_control(names or ()))
        if planted.any():
            ids = set(trials.loc[planted.astype(bool), "trial_id"])
            frames = {
                name: frame[~frame["trial_id"].isin(ids)].reset_index(drop=True)
                for name, frame in frames.items()
            }
    return Run(path=path, manifest=manifest, **frames)


def load_run_trials(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the rows of `trials` of a run by trial id, without reading its other tables.

    Raises RunError as `load_run` does.
    """
    path = Path(path)
    rows = whole_tables(path, read_manifest(path), ("trials",))["trials"].to_pylist()
    return {row["trial_id"]: row for row in rows}


def trial_tables(
    path: str | Path, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, pa.Table]]]:
    """Yield the id and the tables of each trial of the run at `path`.

    Only one trial at a time is in memory. Raises RunError as `load_run` does.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if is_packed(path, manifest):
        [part] = parts_of(path, manifest)
        whole = part.read({"trials", *names})
        for trial_id in whole["trials"]["trial_id"].to_pylist():
            own = {
                name: table.filter(pc.field("trial_id") == trial_id)
                for name, table in whole.items()
                if name in names
            }
            yield trial_id, {name: table for name, table in own.items() if table.num_rows}
        return
    for part in parts_of(path, manifest):
        yield part.directory.name, part.read(names)


def parts_of(path: Path, manifest: Mapping[str, Any]) -> list[Part]:
    """Return the directories with tables of a run: one for each trial, or one if it is packed.

    All entries of the directory of trials are returned; reading one that is no trial raises.
    """
    if is_packed(path, manifest):
        return [Part(path, manifest, packed=True)]
    is_former = manifest["schema_version"] in former.VERSIONS
    trials = path / (former.FILES[TRIALS] if is_former else TRIALS)
    try:
        names = sorted(name for name in names_in(trials) if not name.startswith("."))
    except FileNotFoundError:
        raise RunError(f"{trials} is missing. Restore it, or resume the run.") from None
    except NotADirectoryError:
        raise RunError(
            f"{trials} is not a directory, but must have the run's trials. Move it elsewhere, then"
            " restore the trials or resume the run."
        ) from None
    return [Part(trials / name, manifest) for name in names]


def join_runs(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the requests and the trials of several runs together, for figures that compare them.

    The run's id is put before each trial's id, which is unique only within its run.
    """
    return _joined("requests", runs), _joined("trials", runs)


def concatenated(runs: Sequence[Run]) -> Run:
    """Return all tables of several runs together, as `join_runs`, with the first run's manifest."""
    tables = {name: _joined(name, runs) for name in TABLES}
    return Run(runs[0].path, runs[0].manifest, **tables)


def _joined(name: str, runs: Sequence[Run]) -> pd.DataFrame:
    import pandas as pd

    frames = [getattr(run, name) for run in runs]
    frames = [f.assign(trial_id=f"{n}/" + f["trial_id"]) for n, f in enumerate(frames)]
    joined: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return joined


def whole_tables(
    path: Path, manifest: Mapping[str, Any], names: Collection[str]
) -> dict[str, pa.Table]:
    """Read tables of all trials, and join them in the order of trial ids."""
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(lambda part: part.read(names), parts_of(path, manifest)))
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {
        name: pa.concat_tables(tables) if tables else TABLES[name].empty_table()
        for name, tables in found.items()
    }


def is_packed(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether a run is packed: one file a table, next to the manifest."""
    if "packed" in manifest or manifest["schema_version"] > 1:
        return manifest.get("packed") is True
    return _is_file(path / f"{former.FILES[TRIALS]}.parquet")


def is_packed_run(path: str | Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether `path` is a packed run; raises RunError if it is one of another plan."""
    path = Path(path)
    if not _is_run(path) or not is_packed(path, stored := read_manifest(path)):
        return False
    _refuse_other_plan(path, stored, as_json(manifest))
    return True


def _refuse_other_plan(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if different := differences(planned(stored), planned(wanted)):
        raise RunError(
            f"{path} is a run of another plan ({different}). "
            "Choose another directory, or delete it."
        )


def _is_run(path: Path) -> bool:
    return _is_file(path / MANIFEST)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def _refuse_foreign(path: Path) -> None:
    """Raise RunError if a directory has other files than those that a killed `create` leaves."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file. Choose a directory for the run.")
    ours = re.compile(r"trials|\.manifest\.json\..*|\.sweep\.lock")
    if path.is_dir() and any(not ours.fullmatch(name) for name in names_in(path)):
        raise RunError(f"{path} has other files than a run. Choose an empty or a new directory.")
