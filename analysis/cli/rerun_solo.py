"""`cachelab rerun-solo`: the prompts of wrong answers, each again on an engine of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def rerun_solo(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    prefix_sharing: Annotated[
        str | None, typer.Option(help="none or trie [default: as in the run]")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="engines at the same time")] = 1,
) -> None:
    """Send each prompt that a run answered wrong again, alone on a fresh, untreated engine.

    The exit status is 0 if every answer is right then, 1 if one is wrong or could not be tried.


    For example:

    cachelab rerun-solo runs/first
    """
    from analysis.runs.store import load_run
    from analysis.sweep.rerun_solo import rerun_wrong_prompts

    asked = rerun_wrong_prompts(
        load_run(run), prefix_sharing=prefix_sharing, jobs=jobs, on_answer=_print_answer
    )
    for (release, sharing), rows in asked.groupby(["release", "prefix_sharing"]):
        answered = rows[rows["outcome"].notna()]
        right = int((answered["outcome"] == "ok").sum())
        rejected = int((answered["outcome"] == "rejected").sum())
        words = f"{right} of {len(answered) - rejected} answered right alone"
        words += f", {rejected} rejected" if rejected else ""
        if missing := len(rows) - len(answered):
            words += f"; {missing} could not be tried"
        typer.echo(f"{release} {sharing}: {words}")
    if asked.empty:
        typer.echo("The run has no wrong answer.")
    if (asked["outcome"] != "ok").any():
        raise typer.Exit(1)


def _print_answer(row: Mapping[str, Any]) -> None:
    tail = row["prompt"][-30:]
    outcome = row["outcome"] or f"could not be tried ({row['detail']})"
    sys.stderr.write(f"{row['release']} {row['prefix_sharing']}: {outcome}, ...{tail!r}\n")
