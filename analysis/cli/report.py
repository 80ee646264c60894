"""`cachelab report` and `cachelab lab`: the notebooks, as pages or live."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.values import OptionError, named, some
from analysis.core.errors import writing


def report(
    notebooks: Annotated[
        str, typer.Option(help="numbers, names or files of notebooks, or all")
    ] = "01_reproduce",
    releases: Annotated[
        str | None,
        typer.Option(help="run each notebook once per release, in its kernel [default: all]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="where the pages go")] = Path("data/reports"),
    full: Annotated[
        bool, typer.Option("--full", help="the parameters meant for publication")
    ] = False,
    parameter: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a notebook; repeatable")
    ] = None,
) -> None:
    """Execute notebooks and publish each as one HTML page that opens offline, with an index."""
    from analysis.report import find_notebooks, publish

    result = publish(
        find_notebooks(some("--notebooks", notebooks.replace(" ", ","))),
        releases=None if releases is None else some("--releases", releases),
        out=out,
        full=full,
        parameters=named("--parameter", parameter or ()),
    )
    if not result.ok:
        raise typer.Exit(1)


def lab(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="behind --, go to JupyterLab: -- --allow-root")
    ] = None,
) -> None:
    """Start JupyterLab on 127.0.0.1 with its token on, and a kernel for each release."""
    from analysis.shortfin.environments import start_lab

    raise typer.Exit(start_lab(arguments or ()))


def chart(
    runs: Annotated[list[Path], typer.Argument(help="directories of runs, drawn together")],
    out: Annotated[Path, typer.Option(help="the picture, .png, .svg or .pdf")] = Path(
        "failure_rate.png"
    ),
) -> None:
    """Draw failure rate against concurrency, with 95% intervals, for the trials of some runs."""
    import io

    from analysis.core.files import write_atomically
    from analysis.plots import failure_rate
    from analysis.runs.store import join_runs, load_run

    if out.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter("name a file that ends in .png, .svg or .pdf", param_hint="--out")
    place = Path(os.path.realpath(out))
    if os.path.lexists(place) and not place.is_file():
        raise OptionError(f"`--out` {out} is no file that can be replaced: name another.")
    figure = failure_rate(*join_runs([load_run(path) for path in runs]))
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:], dpi=150, bbox_inches="tight")
    with writing(out):
        write_atomically(place, picture.getvalue())
    typer.echo(out)
