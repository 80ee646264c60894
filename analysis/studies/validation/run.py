"""Run a staged validation on real engines: a sanitized sweep a level, until one is not clean."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.core import jobs as child_jobs
from analysis.core.errors import CachelabError, check_writable
from analysis.core.files import write_atomically
from analysis.runs.store import differences, load_run
from analysis.shortfin.environments import python_of
from analysis.shortfin.releases import row_of
from analysis.studies.validation.evidence import Evidence, isolated_of, level_of, read_evidence
from analysis.studies.validation.plan import Settings, ValidationError
from analysis.studies.validation.result import Isolated, Level, StagedValidation
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep

OnStep = Callable[[Isolated | Level], None]
"""Called with each result."""

_WAITING, _IDLE_JOBS = 10, 8
"""Engines that wait this many times longer for a token in a batch with room: so many run at once.
"""
_GRACE_S = 60.0
"""Time for the cache alone beyond its budget: to start, and to minimise failures."""
_SETTINGS, _ISOLATED, _RESULT = "settings.json", "isolated.json", "result.json"


def validate(
    settings: Settings,
    out: str | Path,
    *,
    jobs: int | None = None,
    budget_s: float = math.inf,
    on_step: OnStep | None = None,
    progress: bool = False,
) -> StagedValidation:
    """Validate treatments: the cache alone, then ever more concurrent requests.

    A level is clean if no accepted request failed, no rule was broken, no page leaked, the injected
    fault was detected, and enough requests were accepted for `settings.rate` to show. The first
    level that is not clean ends the validation and is explained. `jobs` engines run at a time; None
    means one a core, and more where engines mostly wait. After `budget_s` seconds the result is
    undecided; a call with the same settings and `out` continues there.

    `out` holds `settings.json`, `isolated.json`, a run for each level (`level-02`, ...) and
    `result.json`; directories with the `ladder.json` of earlier versions are refused. Raises
    ValidationError, and what `run_sweep` does.
    """
    if not budget_s >= 0:
        raise ValidationError(f"`--time-budget` must be 0 seconds or more, not {budget_s}.")
    plans = settings.plans()
    out, ends = Path(out), time.monotonic() + budget_s
    _claim(out, settings)
    report = on_step or (lambda step: None)
    validation = StagedValidation(settings)
    if settings.isolated_s:
        isolated = _isolated(settings, out, ends)
        validation = replace(validation, isolated=isolated)
        report(isolated)
    for plan in plans.values():
        if validation.last is not None and validation.last.verdict != "clean":
            break
        if time.monotonic() >= ends:
            validation = replace(validation, out_of_time=True)
            break
        level = run_level(
            settings, plan, out, jobs=jobs or jobs_of(plan), ends=ends, progress=progress
        )
        validation = replace(
            validation,
            results=(*validation.results, level),
            out_of_time=level.verdict == "undecided" and time.monotonic() >= ends,
        )
        report(level)
    write_atomically(out / _RESULT, json.dumps(validation.as_dict(), indent=2) + "\n")
    return validation


def run_level(
    settings: Settings, plan: Plan, out: Path, *, jobs: int, ends: float, progress: bool = False
) -> Level:
    """Run one level until `ends`, or until an engine fails; what is on disk is not run again."""
    [concurrency] = plan.concurrency
    path = out / f"level-{concurrency:02d}"
    known: dict[str, Evidence] = {}

    def read(*_: Any) -> None:
        known.update({e.trial_id: e for e in read_evidence(path, settings.tolerate, known)})

    def stop() -> bool:
        return time.monotonic() >= ends or any(item.broken for item in known.values())

    read()
    run_sweep(plan, path, jobs=jobs, on_trial=read, stop=stop, progress=progress)
    level = level_of(settings, concurrency, known.values(), run=path.name)
    if level.verdict == "failed":
        return replace(level, explanation=_explanation(path, level, plan))
    if missing := [name for name in plan.workloads if name not in _workloads(plan, known.values())]:
        message = f"Time ran out before these workloads: {', '.join(missing)}."
        return replace(level, unchecked=(*level.unchecked, message))
    return level


def jobs_of(plan: Plan) -> int:
    """Return how many engines fill the cores without slowing each other down."""
    pace = row_of(plan.releases[0]).pace
    waits = (
        plan.concurrency[0] % max(plan.batch_sizes)
        and pace.further_token_s > _WAITING * pace.full_further_token_s
    )
    return _IDLE_JOBS if waits else os.cpu_count() or 1


def _workloads(plan: Plan, evidence: Iterable[Evidence]) -> set[str]:
    """Return the workloads that were run."""
    done = {item.trial_id for item in evidence if item.control is None}
    return {plan.workload_of(trial.repeat) for trial in plan.trials() if trial.trial_id in done}


def _explanation(path: Path, level: Level, plan: Plan) -> str:
    """Return the diagnosis of the first failing request, or the findings if there is none."""
    findings = "\n\n".join(f"{group.name}: {group.message}" for group in level.findings[:3])
    if level.failing is None or not level.failing[1]:
        return findings or "\n".join(level.endings[:1])
    trial_id, request_id = level.failing
    workloads = {trial.trial_id: plan.workload_of(trial.repeat) for trial in plan.trials()}
    from analysis.diagnosis import explain

    try:
        explained = explain(load_run(path), request_id, trial_id=trial_id)
        where = f"In {trial_id}, workload {workloads[trial_id]}:"
        return " ".join([where, explained.summary, *explained.diagnosis])
    except CachelabError as error:
        return f"{request_id} of {trial_id} cannot be explained: {error} {findings}".strip()


def _isolated(settings: Settings, out: Path, ends: float) -> Isolated:
    """Examine the cache alone, or return the result that is on disk."""
    file = out / _ISOLATED
    if file.is_file():
        kept = json.loads(file.read_text())
        return Isolated(**{**kept, "failures": tuple(kept["failures"])})
    budget_s = min(settings.isolated_s, max(1.0, ends - time.monotonic()))
    isolated = examine(settings, budget_s)
    if isolated.verdict != "undecided":
        write_atomically(file, json.dumps(asdict(isolated), indent=2) + "\n")
    return isolated


def examine(settings: Settings, budget_s: float) -> Isolated:
    """Examine the cache of a release alone, in a child process, for at most `budget_s` seconds.

    If the child fails, the result says so. Raises ReleaseError if the release has no environment.
    """
    job = {
        "prefix_sharing": settings.prefix_sharing,
        "treatments": settings.treatments,
        "budget_s": budget_s,
    }
    python, started = python_of(settings.release), time.monotonic()
    answers = child_jobs.ask(
        python, "analysis.interleavings.job", job, "The examination",
        error=ValidationError, first_s=budget_s + _GRACE_S,
    )  # fmt: skip
    try:
        (output,) = answers
    except ValidationError as error:
        return Isolated(None, problem=str(error), seconds=time.monotonic() - started)
    return isolated_of(output, time.monotonic() - started)


def _claim(out: Path, settings: Settings) -> None:
    """Take a directory for this validation. Raises ValidationError if it holds something else."""
    plain = settings.as_dict()
    check_writable(out)
    file = out / _SETTINGS
    if not file.is_file():
        if any(out.iterdir()):
            raise ValidationError(f"{out} holds something else: choose a new or empty directory.")
        write_atomically(file, json.dumps(plain, indent=2) + "\n")
        return
    stored = json.loads(file.read_text())
    # A validation that ran out of time may go on with more time for the cache alone.
    if different := differences({**stored, "isolated_s": settings.isolated_s}, plain):
        raise ValidationError(f"{out} is another validation ({different}): choose another place.")
