"""`cachelab compare`: two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(help="a run's directory")],
    second: Annotated[Path, typer.Argument(help="another one")],
) -> None:
    """Compare how often requests failed in two runs, for each setting that both have.

    A setting that is constant in each run but not the same, such as the release, is what is
    compared. P values are of a permutation test over engines, adjusted for all rows.

    For example:

    cachelab compare runs/before runs/after
    """
    from analysis.core.errors import RunError
    from analysis.plots.tables import comparison_table
    from analysis.runs.store import load_run
    from analysis.stats.comparison import compare as compare_runs

    runs = [load_run(path) for path in (first, second)]
    for run in runs:
        if run.trials.empty:
            raise RunError(f"No trial of {run.path} has finished. Go on with its sweep first.")
    found = compare_runs(*((run.requests, run.trials) for run in runs))
    if found.rows.empty:
        raise RunError(
            f"{first} and {second} have no setting and concurrency in common. Sweep both with the"
            " same `--prefix-sharing`, `--pages`, `--workload` and `--concurrency`."
        )
    typer.echo(f"{comparison_table(found)!r}")
