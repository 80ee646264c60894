"""`cachelab plot`: failure rate against concurrency as one picture."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.values import OptionError
from analysis.core.errors import writing


def plot(
    runs: Annotated[list[Path], typer.Argument(help="directories of runs, drawn together")],
    out: Annotated[Path, typer.Option(help="the picture, .png, .svg or .pdf")] = Path(
        "failure_rate.png"
    ),
) -> None:
    """Draw failure rate against concurrency, with 95% intervals, for the trials of some runs.

    For example:

    cachelab plot runs/first --out failure_rate.svg
    """
    from analysis.core.files import write_atomically
    from analysis.plots import failure_rate
    from analysis.runs.store import join_runs, load_run

    if out.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter("name a file that ends in .png, .svg or .pdf", param_hint="--out")
    place = Path(os.path.realpath(out))
    if os.path.lexists(place) and not place.is_file():
        raise OptionError(f"`--out` {out} is not a regular file: name another path.")
    figure = failure_rate(*join_runs([load_run(path) for path in runs]))
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:], dpi=150)
    with writing(out):
        write_atomically(place, picture.getvalue())
    typer.echo(out)
