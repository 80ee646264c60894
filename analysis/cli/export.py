"""`cachelab export`: runs as one file a table, for sharing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="directories of runs; several become one run. Or one directory with runs in it"
        ),
    ],
    out: Annotated[Path, typer.Option(help="the new directory")],
    light: Annotated[
        bool,
        typer.Option(
            "--light",
            help="without arguments of invocations, stacks, and most events and snapshots",
        ),
    ] = False,
) -> None:
    """Write a copy of runs with one file a table, for sharing.

    For example:

    cachelab export runs/first --out first-shared

    cachelab export runs/first --out first-light --light

    cachelab export runs --out shared --light
    """
    from analysis.runs.manifest import MANIFEST
    from analysis.runs.packing import pack_directory, pack_runs

    alone = len(runs) == 1 and not (runs[0] / MANIFEST).is_file()
    typer.echo(
        pack_directory(runs[0], out, light=light) if alone else pack_runs(runs, out, light=light)
    )
