"""`cachelab runs`: list, verify and remove runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.values import Json

if TYPE_CHECKING:
    from analysis.sweep.upkeep import Listed, Verified

app = typer.Typer(help="The runs on disk: list, verify, remove.", no_args_is_help=True)

_Runs = Annotated[list[Path], typer.Argument(help="directories of runs")]


@app.command("list")
def list_(
    directory: Annotated[
        Path | None,
        typer.Argument(help="where to look [default: data/runs, or ./runs if installed]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the runs at and below a directory: plan, progress and size.

    The exit status is 1 if one of them cannot be read.


    For example:

    cachelab runs list

    cachelab runs list runs
    """
    from analysis.core.errors import RunError
    from analysis.core.paths import runs_dir
    from analysis.sweep.upkeep import find_runs, listed

    place = directory or runs_dir()
    if directory is not None and not directory.is_dir():
        raise RunError(f"{directory} is no directory: name one that has runs.")
    paths = find_runs(place)
    if not paths and not as_json:
        typer.echo(f"There is no run in {place}.")
    troubled = False
    for path in paths:
        run = listed(path)
        troubled |= run.trouble is not None
        typer.echo(json.dumps(_plain(run)) if as_json else _words(run))
    if troubled:
        raise typer.Exit(1)


@app.command()
def verify(
    runs: _Runs,
    as_json: Json = False,
) -> None:
    """Check runs against their checksums and the declared tables.

    The exit status is 0 if everything is as it was written, else 1.


    For example:

    cachelab runs verify runs/first
    """
    from analysis.sweep.upkeep import check_is_run, verify_run

    for path in runs:  # all of them before the first is read
        check_is_run(path)
    found = []
    for path in runs:
        found.append(verify_run(path))
        typer.echo(json.dumps(_plain(found[-1])) if as_json else _said(found[-1]))
    if any(run.troubles for run in found):
        raise typer.Exit(1)


@app.command()
def rm(
    runs: _Runs,
    yes: Annotated[bool, typer.Option("--yes", help="without confirmation")] = False,
) -> None:
    """Remove the files of runs; other files in their directories stay.

    A run that a process is writing to is not removed.


    For example:

    cachelab runs rm runs/first --yes
    """
    from analysis.core.errors import RunError
    from analysis.runs.store import is_written, read_manifest
    from analysis.sweep.upkeep import remove_run

    for path in runs:  # all of them before the first is removed
        read_manifest(path)
        if is_written(path):
            raise RunError(f"A sweep is writing to {path}: end it, or wait for its end.")
    if not yes:
        if not sys.stdin.isatty():
            raise RunError("Nothing was removed: confirm with `--yes`.")
        try:
            answer = input(f"Remove {', '.join(map(str, runs))}? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise RunError("Nothing was removed.")
    for path in dict.fromkeys(runs):
        left = remove_run(path)
        typer.echo(f"{path}: removed")
        for file in left:
            typer.echo(f"  {file} is none of the run's and was left")


def _plain(run: Listed | Verified) -> dict[str, object]:
    return {**dataclasses.asdict(run), "path": str(run.path)}


def _words(run: Listed) -> str:
    size = f"{run.size_bytes / 1e6:.1f} MB"
    if run.trouble is not None:
        return f"{run.path}  {size}\n  {run.trouble}"
    parts = [
        f"{run.finished} of {'?' if run.planned is None else run.planned} trials",
        f"{run.requests} requests",
        size,
        run.created or "when is not known",
    ]
    releases = ",".join(run.releases) or "releases not known"
    return (
        f"{run.path}  {', '.join(parts)}{', being written' if run.written else ''}\n"
        f"  {releases}: {run.plan or 'no plan'}"
    )


def _said(run: Verified) -> str:
    planned = "" if run.planned is None else f" of {run.planned} planned"
    lines = [
        f"{run.path}: {run.trials}{planned} trials, {run.requests} requests,"
        f" {run.rows} rows in {run.tables} tables"
    ]
    if run.without_checksums:
        lines.append(
            f"  {run.without_checksums} tables are of before there were checksums: only their form"
            " was checked; `cachelab export` writes a copy that has them"
        )
    elif not run.troubles:
        lines[0] += ", all as they were written"
    return "\n".join([*lines, *(f"  {trouble}" for trouble in run.troubles)])
