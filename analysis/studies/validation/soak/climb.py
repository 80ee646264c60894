"""Stress at several levels, each on an engine of its own in a child process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.core import children
from analysis.core.errors import EngineError, MachineError
from analysis.runs.tables import count_requests
from analysis.shortfin.environments import python_of
from analysis.shortfin.releases import installed_release
from analysis.studies.validation.soak.result import COLUMNS, Stress
from analysis.sweep.plan import Plan, Trial
from analysis.sweep.prepare import Prepared, prepare
from analysis.sweep.rows import judged, read_records

LEVELS = (2, 4, 8, 16, 32)
_WORKLOADS = 4
"""Different ones that are asked in turn."""
_RESUBMIT_S = 0.05
_START_S = 60.0
"""How long an engine may take to start and to end, beside what it is asked."""


def stress(
    prefix_sharing: str = "none",
    treatments: Sequence[str] = (),
    levels: Sequence[int] = LEVELS,
    budget_s: float = 60.0,
    *,
    release: str | None = None,
    pages: int = 256,
    workload: str = "mixed",
    max_new_tokens: int = 15,
    request_timeout_s: float = 20.0,
    seed: int = 0,
) -> Stress:
    """Ask one engine a level again and again until its share of `budget_s` seconds has passed.

    Each iteration sends one request from each of `level` clients at once, four sets of prompts in
    turn; a refused request is sent again. Between iterations, with nobody served, resident memory
    and pages are counted. A level ends early if the engine dies, or answers nobody any more.
    Engines start outside the budget. `release` is the one installed here if None. Raises
    PlanError, EngineError, ReleaseError, WorkloadError or ModelError.
    """
    if not (budget_s > 0 and math.isfinite(budget_s)):
        raise EngineError(f"The time for stress must be more than 0 seconds, not {budget_s}.")
    release = release or installed_release()
    if release is None:
        raise EngineError("No shortfin is installed here: name the release to put under stress.")
    plan = Plan(
        releases=(release,),
        prefix_sharing=(prefix_sharing,),
        pages=(pages,),
        concurrency=tuple(levels),
        workload=workload,
        repeats=_WORKLOADS,
        rounds=1,
        seed=seed,
        max_new_tokens=max_new_tokens,
        request_timeout_s=request_timeout_s,
        treatments=(tuple(treatments),),
        resubmit_s=_RESUBMIT_S,
    )
    python, prepared = python_of(release), prepare(plan)
    rows, endings = [], {}
    for level in plan.concurrency:
        trials = [trial for trial in plan.trials() if trial.concurrency == level]
        lines, ending = _one(python, plan, prepared, trials, budget_s / len(plan.concurrency))
        rows += [_row(level, line, prepared, trials) for line in lines]
        endings[level] = ending
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Stress(release, prefix_sharing, tuple(treatments), budget_s, frame, endings)


def _one(
    python: Path, plan: Plan, prepared: Prepared, trials: Sequence[Trial], seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the iterations of one level, and how it ended if not by its time."""
    spec = {
        "parent": os.getpid(),
        "level": trials[0].concurrency,
        "seconds": seconds,
        "config": plan.engine_config(trials[0]),
        "treatments": list(trials[0].treatments),
        "request_timeout_s": plan.request_timeout_s,
        "resubmit_s": plan.resubmit_s,
        "workloads": [[vars(r) for r in prepared.workload(trial).requests] for trial in trials],
    }
    with children.scratch("cachelab-stress") as place:
        files = [Path(place, name) for name in ("spec.json", "lines.jsonl", "logs")]
        files[0].write_text(json.dumps(spec))
        output = Path(place, "output.txt")
        with output.open("wb") as printed:
            process = children.start(
                [python, "-m", "analysis.studies.validation.soak.child", *files],
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
        # The last iteration may begin just before the end, and last as long as a request may.
        patience = seconds + plan.request_timeout_s + _START_S
        deadline, late = time.monotonic() + patience, False
        try:
            while process.poll() is None and not late:
                time.sleep(0.05)
                late = time.monotonic() > deadline
        finally:
            children.kill_group(process)
        lines = read_records(files[1])
        said = children.tail(output, 4000).strip().splitlines()
    if refused := next((line["refused"] for line in lines if "refused" in line), None):
        raise EngineError(refused)
    if process.returncode > 0 and not late and not any("begun" in line for line in lines):
        last = said[-1].strip() if said else "it said nothing."
        raise MachineError(f"The process of an engine under stress could not start one: {last}")
    ending = next((line["ending"] for line in lines if "ending" in line), None)
    if ending is None and late:
        ending = f"It did not end within {patience:g} s and was ended."
    if ending is None and process.returncode:
        last = f": {said[-1].strip()}" if said else ""
        ending = f"Its process ended with status {process.returncode}{last}"
    return [line for line in lines if "iteration" in line], ending


def _row(
    level: int, line: Mapping[str, Any], prepared: Prepared, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Return an iteration as a row, its answers judged."""
    trial = trials[line["workload"]]
    answers = prepared.answers[trial.release]
    asked = {request.id: request for request in prepared.workload(trial).requests}
    counts = count_requests(
        judged(row, request, answers.get((request.prompt, request.max_new_tokens)))[0]
        for row in line["answers"]
        for request in [asked[row["request_id"]]]
    )
    times = [row["latency_s"] for row in line["answers"] if row["outcome"] in ("ok", "wrong")]
    return {
        "level": level,
        "iteration": line["iteration"],
        "t_s": line["ended_s"],
        "seconds": line["ended_s"] - line["begun_s"],
        "requests": counts.asked,
        "failed": counts.failed,
        "rejected": counts.rejected,
        "retries": sum(row["retries"] or 0 for row in line["answers"]),
        "latency_p50": float(np.median(times)) if times else math.nan,
        "latency_max": max(times, default=math.nan),
        "rss_bytes": line["rss_bytes"],
        "free": line["free"],
        "cached": line["cached"],
        "lost": line["leaked"] + line["live"],
    }
