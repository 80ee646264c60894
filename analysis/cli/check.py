"""`cachelab check`: what was recorded of a run, held against the rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.values import Json

if TYPE_CHECKING:
    from analysis.sanitizer import Findings, Group
    from analysis.sanitizer.recorded import Checked


def check(
    run: Annotated[Path, typer.Argument(help="a run's directory, swept with --sanitize/--observe")],
    as_json: Json = False,
) -> None:
    """Check what a run recorded, invocation by invocation and event by event.

    The exit status is 0 if no rule was broken and all was checked, 4 if a rule was broken, 3 if
    an injected fault was not detected or something could not be checked, and 1 if there is nothing
    to check. What injected faults broke is left out.


    For example:

    cachelab check runs/checked
    """
    from analysis.sanitizer.recorded import check_run

    settings = check_run(run, on_trial=_print_rows if as_json else None)
    if not as_json:
        for number, checked in enumerate(settings):
            typer.echo(("\n" if number else "") + _words(checked))
    if any(checked.void for checked in settings):
        sys.stderr.write(
            "An injected fault was not detected: the results marked VOID are invalid.\n"
        )
        raise typer.Exit(3)
    if any(checked.groups for checked in settings):
        raise typer.Exit(4)
    if not all(checked.complete for checked in settings):
        sys.stderr.write("Not everything was checked: whether a rule was broken is undecided.\n")
        raise typer.Exit(3)


def _print_rows(trial_id: str, findings: Findings | None) -> None:
    for row in [] if findings is None else findings.rows(trial_id):
        sys.stdout.write(json.dumps(row) + "\n")


def _words(checked: Checked) -> str:
    from analysis.sanitizer.findings import worst

    if checked.controls:
        control = f"{checked.alarms} of {checked.controls} planted faults found"
        control += f" ({', '.join(checked.planted)})" + (": VOID" if checked.void else "")
    elif checked.idle:
        control = f"no planted fault could be injected ({', '.join(checked.planted)})"
    else:
        control = "no fault was planted as a control"
    lines = [
        f"{checked.name}: {checked.trials - checked.unobserved} of {checked.trials} trials checked,"
        f" {checked.invocations} invocations, {checked.events} events; {control}"
    ]
    if not checked.groups:
        where = "" if checked.complete else " in what was checked"
        lines.append(f"  No rule was broken{where}.")
    for (rule, cause), members in sorted(checked.groups.items(), key=_importance):
        trial_id, lead = members[0]
        count = sum(group.count for _, group in members)
        requests = sum(len(group.by_request) for _, group in members)
        severity = worst(group.severity for _, group in members)
        lines += [
            f"  {severity}: {rule} ({cause}), {count} times in {requests} requests of"
            f" {len(members)} trials",
            f"    {lead.first.text}",
            f"    in {trial_id}, {lead.first.at}",
            *(f"      {line}" for line in (lead.first.stack or "").splitlines()[-3:]),
        ]
    lines += [f"  not checked: {note}" for note in checked.not_checked]
    lines += [f"  limit on {checked.release}: {r}: {text}" for r, text in checked.limits.items()]
    return "\n".join(lines)


def _importance(item: tuple[tuple[str, str], list[tuple[str, Group]]]) -> tuple[bool, int]:
    from analysis.sanitizer.findings import WRONG_DATA

    _, members = item
    return all(group.severity != WRONG_DATA for _, group in members), -len(members)
