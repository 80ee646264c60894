"""`cachelab show`: what a run measured, as a table, and what to do next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.values import emphasise

if TYPE_CHECKING:
    from analysis.runs.store import Run


def show(run: Annotated[Path, typer.Argument(help="a run's directory")]) -> None:
    """Show how the requests of a run ended, for each setting and concurrency.

    For example:

    cachelab show runs/first
    """
    from analysis.runs.store import load_run

    print_run(load_run(run))


def print_run(run: Run) -> None:
    """Print a row for each setting and concurrency, and the next command to type."""
    from analysis.plots.tables import outcomes_table
    from analysis.runs.derive import failed_requests
    from analysis.runs.manifest import is_whole

    if run.trials.empty:
        typer.echo("No trial has finished.")
        return
    typer.echo(f"\n{outcomes_table(run.requests, run.trials)!r}\n")
    failed = failed_requests(run.requests, run.trials)
    if failed.empty:
        typer.echo("No request failed.")
    elif not is_whole(run.manifest, failed["trial_id"].iloc[0]):
        typer.echo("This light copy has too little to explain a failure; the run itself has more.")
    elif run.events.empty:
        typer.echo("Nothing was recorded, so no failure can be explained: sweep with --sanitize.")
    else:
        emphasise(f"Next: cachelab explain {shlex.quote(str(run.path))}", sys.stdout, bold=True)
