"""`cachelab explain`: why one request of a run failed, as text and as one figure."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.values import RequestId, TrialId, emphasise
from analysis.core.errors import writing

if TYPE_CHECKING:
    import pandas as pd

    from analysis.diagnosis import Explanation
    from analysis.runs.store import Run
    from analysis.sweep.plan import Plan

_LISTED = 10


def explain(
    run: Annotated[Path, typer.Argument(help="a run's directory, swept with --sanitize/--observe")],
    request: RequestId = None,
    trial: TrialId = None,
    out: Annotated[
        Path | None, typer.Option(help="where to write explanation.png and explanation.html")
    ] = None,
    reference: Annotated[
        bool, typer.Option(help="compute the step of the wrong token with the reference decoder")
    ] = True,
    alone: Annotated[
        bool, typer.Option("--alone", help="also send its prompt to a fresh engine, alone")
    ] = False,
) -> None:
    """Explain why a request of a run failed: its invocations, pages, first finding and wrong token.

    The verdict on a wrong answer is cache, results, model, numerics or unknown (see the glossary).

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
    from analysis.diagnosis.request_trace import check_trial
    from analysis.runs.derive import failed_requests
    from analysis.runs.store import load_run

    # A trial with an injected fault is explained only if it is named.
    loaded = load_run(run, controls=trial is not None)
    if request is None:
        if trial is not None:
            check_trial(loaded, trial)
        failed = failed_requests(loaded.requests, loaded.trials)
        failed = failed[failed["trial_id"] == trial] if trial else failed
        if failed.empty:
            raise RunError(f"No request of {trial or run} failed. Name the one to explain.")
        _list(failed, loaded)
        request, trial = failed["request_id"].iloc[0], failed["trial_id"].iloc[0]
    explanation = explain_request(loaded, request, trial, reference=reference, alone=alone)
    typer.echo(str(explanation))
    _print_what_to_try(explanation)
    if out is not None:
        typer.echo("\n" + "\n".join(str(file) for file in _write(explanation, out)))
    if not explanation.trace.recorded:
        sys.stderr.write(
            f"Nothing was recorded of {explanation.trial_id}, so the cause is unknown: sweep with"
            " --sanitize or --observe.\n"
        )
        raise typer.Exit(1)


def _list(failed: pd.DataFrame, run: Run) -> None:
    """Print the first of the failed requests, with the verdicts that the tables give."""
    from analysis.diagnosis.verdict import recorded_statuses

    shown = failed[["trial_id", "request_id", "outcome"]].head(_LISTED)
    shown = shown.merge(recorded_statuses(run), on=["trial_id", "request_id"], how="left")
    more = f"\nand {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
    typer.echo(f"{shown.fillna('').to_string(index=False)}{more}\n")


_FLAGS = {
    "model": "--model", "rounds": "--rounds", "batch_sizes": "--batch-sizes", "seed": "--seed",
    "max_new_tokens": "--max-new-tokens", "request_timeout_s": "--request-timeout",
}  # fmt: skip
"""Options of a sweep that a test repeats, by the name in its plan."""


def _print_what_to_try(explanation: Explanation) -> None:
    """Print the treatments that may remove its findings, and the command that tests them."""
    from analysis.studies.one_failure import suspects, treated_sweep

    if not (found := suspects(explanation)):
        return
    typer.echo("\nWhat to try")
    for one in found:
        typer.echo(f"  {one.treatment}, against {one.finding}: {one.hypothesis}")
    if explanation.trace.run.manifest.get("plan"):
        emphasise(f"  {_command(treated_sweep(explanation, found))}", sys.stdout, bold=True)


def _command(plan: Plan) -> str:
    """Return the command of a sweep of one setting."""
    from analysis.sweep.plan import Plan

    usual = json.loads(json.dumps(Plan(releases=plan.releases).as_dict()))
    words: list[object] = ["cachelab", "sweep", "--releases", *plan.releases]
    words += ["--prefix-sharing", *plan.prefix_sharing, "--pages", *plan.pages]
    words += ["--concurrency", *plan.concurrency, "--workload", plan.workload]
    for name, flag in _FLAGS.items():
        value = getattr(plan, name)
        if value is not None and json.loads(json.dumps(value)) != usual.get(name):
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else value]
    for name, value in plan.options.items():
        words += ["--option", f"{name}={json.dumps(value)}"]
    words += ["--keep-wrong"] if plan.keep_wrong else []
    words += ["--serialise-invocations"] if plan.serialise_invocations else []
    words += ["--repeats", plan.repeats]
    words += ["--treatments", ",".join("+".join(arm) or "none" for arm in plan.treatments)]
    return shlex.join(map(str, words))


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
