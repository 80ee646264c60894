"""`cachelab export`: runs as one file a table, for sharing, or for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from analysis.core.errors import RunError


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="directories of runs; several become one run. Or one directory with runs in it"
        ),
    ],
    out: Annotated[Path, typer.Option(help="the new directory")],
    format: Annotated[
        Literal["parquet", "csv", "perfetto", "memory-viz"],
        typer.Option(
            help="parquet: one file a table, which every command reads; csv; or a file a trial for"
            " ui.perfetto.dev, or for pytorch.org/memory_viz"
        ),
    ] = "parquet",
    trial: Annotated[
        list[str] | None,
        typer.Option(help="a trial's id, may be repeated [default: all]; not for parquet"),
    ] = None,
    light: Annotated[
        bool,
        typer.Option(
            "--light",
            help="without arguments of invocations, stacks, and most events and snapshots",
        ),
    ] = False,
) -> None:
    """Write a copy of runs with one file a table, for sharing, or one run for other tools.

    For example:

    cachelab export runs/first --out first-shared

    cachelab export runs/first --out first-light --light

    cachelab export runs --out shared --light

    cachelab export runs/first --format csv --out first-csv
    """
    from analysis.runs.manifest import MANIFEST
    from analysis.runs.packing import pack_directory, pack_runs

    if format != "parquet":
        from analysis.report.handover import hand_over

        if len(runs) > 1 or light:
            raise RunError(f"`--format {format}` takes one run, without `--light`.")
        typer.echo(hand_over(runs[0], out, format, trial or ()))
        return
    if trial:
        raise RunError("`--trial` needs `--format csv`, `perfetto` or `memory-viz`.")
    alone = len(runs) == 1 and not (runs[0] / MANIFEST).is_file()
    typer.echo(
        pack_directory(runs[0], out, light=light) if alone else pack_runs(runs, out, light=light)
    )
