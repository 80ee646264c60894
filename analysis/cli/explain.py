"""`cachelab explain`: why one request of a run failed, as text and as one figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.core.errors import writing

if TYPE_CHECKING:
    import pandas as pd

    from analysis.diagnosis import Explanation

_LISTED = 10


def explain(
    run: Annotated[Path, typer.Argument(help="a run's directory, swept with --sanitize/--observe")],
    request: Annotated[
        str | None, typer.Argument(help="a request's id, such as r0003 [default: the first failed]")
    ] = None,
    trial: Annotated[
        str | None, typer.Option(help="its trial, where several have a request of that name")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="where to write explanation.png and explanation.html")
    ] = None,
    reference: Annotated[
        bool, typer.Option(help="compute the reference decoder's probability of the wrong token")
    ] = True,
) -> None:
    """Explain why a request of a run failed: its invocations, pages, first finding and wrong token.

    Without a request, the failed ones are listed and the first is explained: untreated before
    treated ones, and wrong answers before other failures.

    The exit status is 1 if there is no such run, trial or request, if several trials have one, or
    if nothing was recorded of its trial: then only facts of the answer are printed.


    For example:

    cachelab explain runs/checked

    cachelab explain runs/checked r0001 --trial 3.1.0-none-p256-c4-r0
    """
    from analysis.core.errors import RunError
    from analysis.diagnosis import explain as explain_request
    from analysis.diagnosis import failures
    from analysis.runs.store import load_run

    # A trial with an injected fault is explained only if it is named.
    loaded = load_run(run, controls=trial is not None)
    if request is None:
        failed = failures(loaded)
        failed = failed[failed["trial_id"] == trial] if trial else failed
        if failed.empty:
            raise RunError(f"No request of {trial or run} failed. Name the one to explain.")
        _list(failed)
        request, trial = failed["request_id"].iloc[0], failed["trial_id"].iloc[0]
    explanation = explain_request(loaded, request, trial, reference=reference)
    typer.echo(str(explanation))
    typer.echo(_what_to_try(explanation))
    if out is not None:
        typer.echo("\n" + "\n".join(str(file) for file in _write(explanation, out)))
    if not explanation.trace.recorded:
        sys.stderr.write(
            f"Nothing was recorded of {explanation.trial_id}, so the cause is unknown: sweep with"
            " --sanitize or --observe.\n"
        )
        raise typer.Exit(1)


def _list(failed: pd.DataFrame) -> None:
    """Print the first of the failed requests."""
    shown = failed[["trial_id", "request_id", "outcome"]].head(_LISTED)
    more = f"\nand {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
    typer.echo(f"{shown.to_string(index=False)}{more}\n")


def _what_to_try(explanation: Explanation) -> str:
    """Return the treatments that may remove its findings, and the command that tests them."""
    from analysis.studies.releases.catalogue import treatments_for
    from analysis.treatments import TREATMENTS

    trial = explanation.trial
    where = str(trial["release"]), str(trial["prefix_sharing"])
    names = [
        name
        for found in explanation.findings
        for name in treatments_for(found.rule, found.cause, *where)
        if name not in trial["treatments"]
    ]
    if not names:
        return ""
    names = list(dict.fromkeys(names))
    arms = ["none", *names] + (["+".join(names)] if len(names) > 1 else [])
    lines = [f"  {name}: {TREATMENTS[name].hypothesis}" for name in names]
    command = (
        f"cachelab sweep --releases {where[0]} --prefix-sharing {where[1]} --pages"
        f" {trial['page_count']} --concurrency {trial['concurrency']} --workload"
        f" {trial['workload']} --repeats 6 --sanitize --treatments {','.join(arms)}"
    )
    return "\n".join(["\nWhat to try", *lines, f"  {command}"])


def _write(explanation: Explanation, out: Path) -> list[Path]:
    """Write the figure, and a page with text and figure that opens offline; return the files."""
    from analysis.core.files import write_atomically
    from analysis.diagnosis.figure import explanation_figure
    from analysis.plots.style import png_of
    from analysis.report.pages import render_explanation

    png = png_of(explanation_figure(explanation), dpi=150)
    files: dict[Path, str | bytes] = {
        out / "explanation.png": png,
        out / "explanation.html": render_explanation(explanation, png),
    }
    with writing(out):
        for file, content in files.items():
            write_atomically(file, content)
    return list(files)
