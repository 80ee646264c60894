"""`cachelab report`: the notebooks as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.values import named, some


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
