"""`cachelab report`: the notebooks as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.cli.values import named, some


def report(
    notebooks: Annotated[
        str, typer.Option(help="numbers, names or files of notebooks, or all")
    ] = "01_reproduce",
    releases: Annotated[
        str | None,
        typer.Option(
            help="run each notebook once per release, in its kernel"
            " [default: all that have an environment here]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="where the pages go [default: data/reports, or ./reports if installed]"),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="the parameters meant for publication")
    ] = False,
    recorded: Annotated[
        Path | None,
        typer.Option(
            help="show what is recorded in this directory, without an engine; the checkout has"
            " data/recorded"
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a notebook; repeatable")
    ] = None,
) -> None:
    """Execute notebooks and publish each as one HTML page that opens offline, with an index.

    The exit status is 1 if a notebook did not run to its end.

    For example:

    cachelab report

    cachelab report --notebooks 01,03 --releases 3.9.0 --parameter repeats=2

    cachelab report --notebooks all --full --out pages

    cachelab report --notebooks all --recorded data/recorded
    """
    from analysis.core.paths import reports_dir
    from analysis.report import find_notebooks, publish

    result = publish(
        find_notebooks(some("--notebooks", notebooks.replace(" ", ","))),
        releases=None if releases is None else some("--releases", releases),
        out=out or reports_dir(),
        full=full,
        recorded=recorded,
        parameters=_located(named("--parameter", parameter or ())),
    )
    if not result.ok:
        raise typer.Exit(1)


def _located(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with absolute paths: a notebook runs in its own directory."""
    return {
        name: str(Path(value).resolve())
        if name in _PATHS and isinstance(value, str) and Path(value).exists()
        else value
        for name, value in parameters.items()
    }


_PATHS = ("workload", "model")
"""Parameters that may be paths, or names."""
