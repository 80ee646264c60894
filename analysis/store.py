"""A run on disk: `manifest.json`, and one directory of Parquet tables for every finished cell.

    RUN/manifest.json                    what was run, with what, on what, and how
    RUN/cells/CELL_ID/cells.parquet      one row
    RUN/cells/CELL_ID/requests.parquet   one row a request; further tables where they were recorded

A cell appears whole or not at all: its tables are written into a hidden directory beside the
others, which is then renamed. What was finished before a crash or a kill is therefore always
readable, and a sweep that starts again on the same directory goes on where the last one stopped.
`pack_run` writes a run anew with one file a table beside the manifest, for sharing. The columns
are declared once, in `analysis/tables.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from analysis.errors import RunError, shown
from analysis.manifest import new_manifest
from analysis.tables import (
    CELL_STATUS,
    OUTCOMES,
    TABLES,
    checked,
    describe,
    is_control,
    to_frame,
    to_table,
)

__all__ = [
    "CELL_STATUS",
    "OUTCOMES",
    "TABLES",
    "Run",
    "RunWriter",
    "cell_tables",
    "describe",
    "join_runs",
    "load_run",
    "load_run_cells",
    "new_manifest",
    "pack_run",
    "read_manifest",
    "to_frame",
    "to_table",
    "write_atomically",
]

SCHEMA_VERSION = 1
_CELL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]{0,199}")
_TEMPORARY = ".writing-"
_REQUIRED = ("cells", "requests")


@dataclass(frozen=True)
class Run:
    """A run read back: each table a frame with the declared columns, also where it has no rows."""

    path: Path
    manifest: dict[str, Any]
    cells: pd.DataFrame
    requests: pd.DataFrame
    flights: pd.DataFrame
    events: pd.DataFrame
    snapshots: pd.DataFrame
    findings: pd.DataFrame


class RunWriter:
    """Writes one run, cell by cell; safe to kill at any moment."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Wrap a directory that already is a run; use `create` or `resume` instead."""
        self.path = path
        self.manifest = manifest
        self._cells = path / "cells"

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any]) -> RunWriter:
        """Start a run in a directory that is new or empty.

        Raises RunError if the directory already holds something, or cannot be written.
        """
        path = Path(path)
        if _is_run(path):
            raise RunError(
                f"{path} already holds a run: resume it with its plan, or choose another place."
            )
        _refuse_foreign(path)
        whole = {"schema_version": SCHEMA_VERSION, **_as_json(manifest)}
        try:
            (path / "cells").mkdir(parents=True, exist_ok=True)
            write_atomically(path / "manifest.json", json.dumps(whole, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"{path} cannot hold a run: {error}; choose a writable place."
            ) from error
        return cls(path, whole)

    @classmethod
    def resume(cls, path: str | Path, manifest: Mapping[str, Any]) -> RunWriter:
        """Go on with the run at `path`, or start it there if there is nothing yet.

        The stored manifest is kept. Raises RunError if `path` holds something that is no run, or a
        run whose `plan` or `seed` is not that of `manifest`.
        """
        path = Path(path)
        if not _is_run(path):
            return cls.create(path, manifest)
        if _is_packed(path):
            raise RunError(f"{path} is a packed run, which is finished: choose another place.")
        stored, wanted = read_manifest(path), _as_json(manifest)
        if different := differences(_planned(stored), _planned(wanted)):
            raise RunError(
                f"{path} is a run of another plan ({different}): "
                "choose another place, or delete it."
            )
        (path / "cells").mkdir(exist_ok=True)
        writer = cls(path, stored)
        writer._sweep_leftovers()
        return writer

    def write_cell(
        self,
        cell: Mapping[str, Any],
        requests: Sequence[Mapping[str, Any]],
        **other_tables: Sequence[Mapping[str, Any]] | pa.Table,
    ) -> Path:
        """Write all tables of one cell at once and return its directory.

        `cell` is its row of `cells`; `other_tables` are rows or Arrow tables by table name, of
        which the empty ones are left out. Raises RunError for an unknown table or column, a value
        of a wrong type, a row of another cell, or a cell that is already there.
        """
        cell_id = str(cell.get("cell_id", ""))
        if not _CELL_ID.fullmatch(cell_id):
            raise RunError(
                f"The cell id {cell_id!r} cannot name a directory: use letters, digits and ._+=,-"
            )
        rows = {"cells": [cell], "requests": requests, **other_tables}
        # Convert first: nothing touches the disk unless every row fits its schema.
        tables = {
            name: checked(name, content)
            if isinstance(content, pa.Table)
            else to_table(name, content)
            for name, content in rows.items()
            if len(content) or name in _REQUIRED
        }
        for name, table in tables.items():
            if any(value != cell_id for value in table["cell_id"].unique().to_pylist()):
                raise RunError(f"A row of `{name}` belongs to another cell than {cell_id}.")
        target = self._cells / cell_id
        temporary = self._cells / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            for name, table in tables.items():
                pq.write_table(table, temporary / f"{name}.parquet", compression="zstd")
                _to_disk(temporary / f"{name}.parquet")
            os.replace(temporary, target)
            _to_disk(self._cells)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if target.exists():
                raise RunError(
                    f"{target} is already there: a finished cell is never written again."
                ) from error
            raise RunError(f"{target} cannot be written: {error}.") from error
        return target

    def _sweep_leftovers(self) -> None:
        """Remove what writers that are no longer alive left half-written."""
        for path in self._cells.glob(f"{_TEMPORARY}*"):
            owner = path.name.removeprefix(_TEMPORARY).split("-")[0]
            if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
                shutil.rmtree(path, ignore_errors=True)


def load_run(path: str | Path, *, controls: bool = False) -> Run:
    """Read the run at `path`; each table in one pass over the files of all its cells.

    Rows come in the order of cell ids. Cells in which a fault was planted are left out of every
    table unless `controls`. Raises RunError, with the file to look at, if `path` is no run or
    something in it is missing or damaged.
    """
    path = Path(path)
    manifest = read_manifest(path)
    frames = {
        name: to_frame(name, _read(files, TABLES[name]))
        for name, files in _table_files(path).items()
    }
    if not controls:
        cells = frames["cells"]
        planted = cells["treatments"].map(lambda names: is_control(names or ()))
        if planted.any():
            ids = set(cells.loc[planted.astype(bool), "cell_id"])
            frames = {
                name: frame[~frame["cell_id"].isin(ids)].reset_index(drop=True)
                for name, frame in frames.items()
            }
    return Run(path=path, manifest=manifest, **frames)


def load_run_cells(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the rows of `cells` of the run at `path` by cell id, without its other tables.

    Raises RunError as `load_run` does.
    """
    path = Path(path)
    read_manifest(path)
    rows = _read(_table_files(path)["cells"], TABLES["cells"]).to_pylist()
    return {row["cell_id"]: row for row in rows}


def cell_tables(
    path: str | Path, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, pa.Table]]]:
    """Yield the id of each cell of the run at `path` with those of its tables that it has.

    One cell at a time is in memory. Raises RunError as `load_run` does.
    """
    path = Path(path)
    if _is_packed(path):
        whole = {n: _read(f, TABLES[n]) for n, f in _table_files(path).items() if n in names and f}
        ids = _read([path / "cells.parquet"], TABLES["cells"])["cell_id"].to_pylist()
        for cell_id in ids:
            yield (
                cell_id,
                {
                    name: part
                    for name, table in whole.items()
                    if (part := table.filter(pc.field("cell_id") == cell_id)).num_rows
                },
            )
        return
    for directory in _cell_directories(path):
        files = {name: directory / f"{name}.parquet" for name in names}
        yield (
            directory.name,
            {name: _read([file], TABLES[name]) for name, file in files.items() if file.is_file()},
        )


def join_runs(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the requests and the cells of several runs together, for figures that compare them.

    A cell's id is unique within its run only, so that of the run goes before it.
    """
    joined = []
    for name in ("requests", "cells"):
        frames = [getattr(run, name) for run in runs]
        frames = [f.assign(cell_id=f"{n}/" + f["cell_id"]) for n, f in enumerate(frames)]
        joined.append(pd.concat(frames, ignore_index=True))
    return joined[0], joined[1]


def pack_run(path: str | Path, out: str | Path) -> Path:
    """Write the run at `path` to the new directory `out` with one file a table, for sharing.

    `load_run` reads it as it reads any; it cannot be gone on with. Raises RunError if `path` cannot
    be read, or `out` exists already or cannot be written.
    """
    path, out = Path(path), Path(out)
    manifest = read_manifest(path)
    if out.exists():
        raise RunError(f"{out} exists already: choose a new directory for the packed run.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        for name, files in _table_files(path).items():
            table = _read(files, TABLES[name])
            if table.num_rows or name in _REQUIRED:
                pq.write_table(table, temporary / f"{name}.parquet", compression="zstd")
        write_atomically(temporary / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        os.replace(temporary, out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of the run at `path`; RunError if there is none or it cannot be read."""
    file = Path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is no run, for it has no manifest.json: name a run's directory."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{file} cannot be read ({error}): restore it, or run the sweep again."
        ) from error
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise RunError(f"{file} is no manifest of a run: restore it, or run the sweep again.")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise RunError(
            f"{file} has schema version {manifest['schema_version']}, this package reads "
            f"{SCHEMA_VERSION}: read it with the version of the package that wrote it."
        )
    return manifest


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary name in its directory, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(files: Sequence[Path], schema: pa.Schema) -> pa.Table:
    """Read Parquet files as one table in the order given; columns that a file lacks are null."""
    if not files:
        return schema.empty_table()
    try:
        return pads.dataset(
            [str(file) for file in files], schema=schema, format="parquet"
        ).to_table()
    except (pa.ArrowException, OSError) as error:
        # The message of one read over many files does not always name the bad one: find it.
        for file in files:
            try:
                pads.dataset(str(file), schema=schema, format="parquet").to_table()
            except (pa.ArrowException, OSError) as cause:
                raise RunError(f"{file} is damaged: {_mend(file)}.") from cause
        raise RunError(f"{files[0].parent.parent} cannot be read: {error}.") from error


def _table_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of each table: one for each cell, or a single one if the run is packed."""
    directories = [path] if _is_packed(path) else _cell_directories(path)
    present = {directory: set(os.listdir(directory)) for directory in directories}
    files: dict[str, list[Path]] = {name: [] for name in TABLES}
    for name in TABLES:
        for directory in directories:
            file = directory / f"{name}.parquet"
            if file.name in present[directory]:
                files[name].append(file)
            elif name in _REQUIRED:
                raise RunError(f"{file} is missing: {_mend(file)}.")
    return files


def _mend(file: Path) -> str:
    if _is_packed(file.parent):
        return "restore the packed run"
    return f"delete {file.parent} and resume the run"


def _is_packed(path: Path) -> bool:
    return _is_run(path) and (path / "cells.parquet").is_file()


def _cell_directories(path: Path) -> list[Path]:
    try:
        entries: Iterable[os.DirEntry[str]] = list(os.scandir(path / "cells"))
    except FileNotFoundError:
        return []
    return sorted(Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _refuse_foreign(path: Path) -> None:
    """Refuse a place that holds something else than what a killed `create` leaves."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file: choose a directory for the run.")
    ours = re.compile(r"cells|\.manifest\.json\..*")
    if path.is_dir() and any(not ours.fullmatch(name) for name in os.listdir(path)):
        raise RunError(
            f"{path} holds something that is no run: choose an empty or a new directory."
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return in which values two plans differ, in words; "" if in none."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{n} there {_given(there, n)}, here {_given(here, n)}" for n in names)


def _given(plan: Mapping[str, Any], name: str) -> str:
    return shown(plan[name]) if plan.get(name) is not None else "not given"


def _planned(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two manifests the same plan; versions and machines may differ."""
    plan = manifest.get("plan")
    return {**(plan if isinstance(plan, dict) else {"plan": plan}), "seed": manifest.get("seed")}


def _as_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest as it will be read back, so that tuples compare equal to lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(manifest), default=str))
    except (TypeError, ValueError) as error:
        raise RunError(f"The manifest cannot be written as JSON: {error}.") from error
    return plain


def _to_disk(path: Path) -> None:
    """Have a file or directory written out, so that no rename precedes its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
