"""`cachelab export`: a run as one file a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    out: Annotated[Path, typer.Option(help="the new directory")],
) -> None:
    """Write a copy of a run with one file a table, for sharing.

    For example:

    cachelab export runs/first --out first-shared
    """
    from analysis.runs.store import pack_run

    typer.echo(pack_run(run, out))
