"""Lists, verifies and removes runs on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.core.errors import CachelabError, RunError
from analysis.runs.parts import OURS
from analysis.runs.store import (
    LOCK,
    LOGS,
    MANIFEST,
    TEMPORARY,
    TRIALS,
    WORK,
    alone_in,
    is_packed,
    is_written,
    parts_of,
    read_manifest,
)
from analysis.sweep.process import FROZEN, OUTPUT, PRINTED, STACKS

_TEMPORARY = (f"{TEMPORARY}*", f".{MANIFEST}.*")
"""Files that a killed writer leaves in `trials` and next to the manifest."""


@dataclass(frozen=True)
class Listed:
    """An entry in a list of runs; unknown values are None."""

    path: Path
    releases: tuple[str, ...] = ()
    plan: str = ""
    """Summary of its plan."""
    finished: int | None = None
    planned: int | None = None
    """Number of trials."""
    requests: int | None = None
    size_bytes: int = 0
    created: str | None = None
    written: bool = False
    """Whether a process is writing to the run."""
    trouble: str | None = None
    """Why the run cannot be read; None if it can."""


@dataclass(frozen=True)
class Verified:
    """Result of reading all files of a run."""

    path: Path
    trials: int = 0
    planned: int | None = None
    requests: int = 0
    tables: int = 0
    rows: int = 0
    without_checksums: int = 0
    """Number of tables without checksums (older runs) that match the schema."""
    troubles: tuple[str, ...] = ()
    """Problems, one sentence each."""


def find_runs(directory: str | Path) -> list[Path]:
    """Return the runs in a directory and below, sorted, except runs inside other runs."""
    found = []
    for path, inner, files in os.walk(directory):
        if MANIFEST in files or MANIFEST in inner:
            found.append(Path(path))
            inner.clear()
    return sorted(found)


def listed(path: str | Path) -> Listed:
    """Return the entry of a run in a list; its trials and requests are read and checked."""
    path = Path(path)
    size = sum(map(_size, _files_below(path)))
    try:
        manifest = read_manifest(path)
    except RunError as error:
        return Listed(path, size_bytes=size, trouble=str(error))
    plan = manifest.get("plan") or {}
    created = manifest.get("created")
    run = Listed(
        path,
        releases=tuple(map(str, _list(plan.get("releases")))),
        plan=_in_short(plan),
        size_bytes=size,
        created=None if created is None else str(created),
    )
    finished = requests = 0
    idle = set()
    try:
        for part in parts_of(path, manifest):
            tables = part.read(("trials", "requests"))
            finished += tables["trials"].num_rows
            requests += tables["requests"].num_rows
            idle |= _idle(tables["trials"])
        return replace(
            run,
            finished=finished,
            planned=_planned(plan, idle),
            requests=requests,
            written=is_written(path),
        )
    except RunError as error:
        return replace(run, trouble=str(error))


def check_is_run(path: str | Path) -> None:
    """Raise RunError if a path is not a run; a damaged run is accepted."""
    if not os.path.lexists(Path(path) / MANIFEST):
        read_manifest(path)


def verify_run(path: str | Path) -> Verified:
    """Read all files of a run, and return their size and all problems."""
    path = Path(path)
    try:
        manifest = read_manifest(path)
        parts = parts_of(path, manifest)
    except RunError as error:
        return Verified(path, troubles=(str(error),))
    trials = requests = tables = rows = without = 0
    idle, troubles = set(), []
    for part in parts:
        try:
            read, has_checksums = part.verify()
        except RunError as error:
            troubles.append(str(error))
            continue
        trials += read["trials"].num_rows
        requests += read["requests"].num_rows
        tables += len(read)
        rows += sum(table.num_rows for table in read.values())
        without += 0 if has_checksums else len(read)
        idle |= _idle(read["trials"])
    planned = _planned(manifest.get("plan") or {}, idle)
    return Verified(path, trials, planned, requests, tables, rows, without, tuple(troubles))


def remove_run(path: str | Path) -> list[Path]:
    """Remove the files of a run, and return the other files there, which are kept.

    Raises RunError, before anything is removed, if `path` is not a run or a process writes to it.
    """
    path = Path(path).absolute()  # "." cannot be removed by that name
    packed = is_packed(path, read_manifest(path))
    with alone_in(path):
        try:
            for place in _own(path, packed=packed):
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()
            directories = [*_trials(path), *_inner(path / LOGS), path / TRIALS, path / LOGS]
            for directory in directories:
                if directory.is_dir() and not directory.is_symlink() and not os.listdir(directory):
                    directory.rmdir()
            # Last, so that a partly removed run is still a run and can be removed again.
            (path / MANIFEST).unlink()
            (path / LOCK).unlink()
            if not os.listdir(path) and not path.is_symlink():
                path.rmdir()
        except OSError as error:
            raise RunError(
                f"{error.filename or path} cannot be removed: {error.strerror}."
            ) from error
    return sorted(_files_below(path))


def _size(file: Path) -> int:
    """Return a file's size; 0 if a sweep has moved it."""
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def _own(path: Path, *, packed: bool) -> Iterator[Path]:
    """Yield the files that a run wrote in a directory, except its manifest."""
    for directory in (*([path] if packed else []), *_trials(path)):
        yield from (directory / name for name in sorted(OURS) if (directory / name).is_file())
    yield from path.glob(_TEMPORARY[1])
    if not (path / TRIALS).is_symlink():
        yield from (path / TRIALS).glob(_TEMPORARY[0])
    for directory in _inner(path / LOGS):
        for pattern in (OUTPUT, STACKS, FROZEN, PRINTED):
            yield from directory.glob(pattern)
    if (path / WORK).is_dir():
        yield path / WORK


def _trials(path: Path) -> list[Path]:
    return [place for place in _inner(path / TRIALS) if not place.name.startswith(".")]


def _inner(directory: Path) -> list[Path]:
    """Return the directories in a directory, without links."""
    if directory.is_symlink() or not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.is_symlink())


def _files_below(path: Path) -> Iterator[Path]:
    for directory, _, files in os.walk(path):
        yield from (Path(directory, name) for name in files)


def _idle(trials: pa.Table) -> set[str]:
    """Return the ids of controls without an injection."""
    pairs = zip(trials["trial_id"].to_pylist(), trials["injected"].to_pylist(), strict=True)
    return {trial_id for trial_id, injected in pairs if injected is False}


def _planned(plan: Mapping[str, Any], idle: set[str]) -> int | None:
    """Return the number of trials of a plan; None if unknown."""
    from analysis.sweep.plan import Plan

    try:
        return len(Plan.from_manifest(plan).trials(idle))
    except (CachelabError, TypeError, ValueError, AttributeError):
        return None  # of another version, or of a missing model


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _in_short(plan: Mapping[str, Any]) -> str:
    """Return a short summary of a plan."""

    def joined(name: str) -> str:
        return ",".join(map(str, _list(plan.get(name))))

    arms = _list(plan.get("treatments"))
    words = [
        str(plan.get("workload") or ""),
        joined("prefix_sharing"),
        f"pages {joined('pages')}" if plan.get("pages") else "",
        f"{joined('concurrency')} at once" if plan.get("concurrency") else "",
        f"{plan['repeats']} repeats" if plan.get("repeats") else "",
        f"{len(arms)} sets of treatments" if any(arms) else "",
        "sanitized" if plan.get("sanitize") else str(plan.get("observe") or ""),
    ]
    return ", ".join(word for word in words if word)
