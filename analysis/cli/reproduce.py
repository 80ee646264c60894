"""`cachelab reproduce`: a recorded failure as the smallest workload, a script and an issue."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.values import RequestId, TrialId

if TYPE_CHECKING:
    from analysis.reproduction import Reproduction
    from analysis.reproduction.package import ScriptRun
    from analysis.runs.store import Run


class Format(StrEnum):
    """What is written."""

    script = "script"
    issue = "issue"


def reproduce(
    run: Annotated[Path, typer.Argument(help="a run's directory, best swept with --sanitize")],
    request: RequestId = None,
    trial: TrialId = None,
    finding: Annotated[
        str | None, typer.Option(help="another finding of it than the first: 'RULE (CAUSE)'")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="a new folder [default: reproduced-TRIAL-REQUEST]")
    ] = None,
    format: Annotated[
        Format, typer.Option(help="the script, or the script and the text of an issue")
    ] = Format.script,
    budget: Annotated[float, typer.Option(min=0.1, max=1440, help="minutes for the search")] = 3.0,
    tries: Annotated[
        int, typer.Option(min=1, max=100, help="engines that a workload gets to fail")
    ] = 2,
    replays: Annotated[
        int, typer.Option(min=1, max=1000, help="engines with the smallest workload")
    ] = 10,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="engines at the same time")] = 2,
) -> None:
    """Find the smallest workload that still fails like a request, and write a script that shows it.

    It fails in the same way if a request has the same outcome and, where the run was sanitized, the
    same finding. The script needs only the release of shortfin. Ctrl-C ends the search and keeps
    the smallest workload so far. Exit status: 1 if the failure does not happen again, or the script
    does not show it.


    For example:

    cachelab reproduce runs/checked

    cachelab reproduce runs/checked r0001 --format issue --out reported
    """
    from analysis.reproduction.package import check_place, show, write_package
    from analysis.reproduction.reproduce import reproduce as find
    from analysis.reproduction.words import summary_of
    from analysis.runs.store import load_run

    loaded = load_run(run)
    request, trial = _chosen(loaded, request, trial)
    place = out or Path(f"reproduced-{trial or run.name}-{request}")
    check_place(place)
    found = find(
        loaded, request, trial, finding=finding, budget_s=60 * budget, tries=tries,
        replays=replays, jobs=jobs, on_progress=_print,
    )  # fmt: skip
    script = write_package(found, place)
    typer.echo(summary_of(found))
    done = show(found, script)
    typer.echo(f"{script} ended with status {done.status} on shortfin {found.release}.")
    if format is Format.issue:
        typer.echo(str(_write_issue(found, script, done)))
    if done.status != 1:
        sys.stderr.write(f"The script did not show the failure:\n{done.output}\n")
        raise typer.Exit(1)


def _print(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _chosen(run: Run, request: str | None, trial: str | None) -> tuple[str, str | None]:
    """Return the request to reproduce: the first failed one, else the first with a finding."""
    from analysis.core.errors import RunError
    from analysis.diagnosis.request_trace import check_trial
    from analysis.reproduction.candidate import first_suspect
    from analysis.runs.derive import failed_requests

    if request is not None:
        return request, trial
    if trial is not None:
        check_trial(run, trial)
    failed = failed_requests(run.requests, run.trials)
    failed = failed[failed["trial_id"] == trial] if trial else failed
    if not failed.empty:
        return str(failed["request_id"].iloc[0]), str(failed["trial_id"].iloc[0])
    if trial is None and (suspect := first_suspect(run)) is not None:
        return suspect
    raise RunError(f"No request of {trial or run.path} failed. Name the one to reproduce.")


def _write_issue(found: Reproduction, script: Path, done: ScriptRun) -> Path:
    """Write the issue beside the script, with a run that it explains; return its file."""
    from analysis.core.files import write_atomically
    from analysis.reproduction.fingerprints import fingerprint_table
    from analysis.reproduction.package import WORKLOAD
    from analysis.reproduction.recorded import explained, record
    from analysis.reproduction.words import issue_of

    place = script.parent
    run = record(found, place / WORKLOAD, place / "run")
    text = issue_of(
        found, explained(found, run), script.read_text(), script.name,
        done.output.replace(f"{place.resolve()}/", ""),
        fingerprint_table(found),
    )  # fmt: skip
    write_atomically(place / "issue.md", text)
    return place / "issue.md"
