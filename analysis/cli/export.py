"""`cachelab export`: runs as one file a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    runs: Annotated[list[Path], typer.Argument(help="directories of runs; several become one run")],
    out: Annotated[Path, typer.Option(help="the new directory")],
    light: Annotated[
        bool,
        typer.Option("--light", help="without invocations, stacks, and most events and snapshots"),
    ] = False,
) -> None:
    """Write a copy of runs with one file a table, for sharing.

    For example:

    cachelab export runs/first --out first-shared

    cachelab export runs/first --out first-light --light
    """
    from analysis.runs.packing import pack_runs

    typer.echo(pack_runs(runs, out, light=light))
