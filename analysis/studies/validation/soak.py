"""Soak test: one engine a level runs the same workloads again and again, in a child process."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from analysis.core import children, jobs
from analysis.core.errors import EngineError, MachineError
from analysis.runs.tables import count_requests
from analysis.shortfin.environments import python_of
from analysis.shortfin.releases import installed_release
from analysis.studies.validation.plan import LEVELS
from analysis.sweep.grid import Trial
from analysis.sweep.plan import Plan
from analysis.sweep.prepare import Prepared, prepare
from analysis.sweep.rows import checked_outcome
from analysis.workloads.named import in_turn

COLUMNS = (
    "level", "iteration", "t_s", "seconds", "requests", "failed", "rejected", "retries",
    "latency_p50", "latency_max", "rss_bytes", "free", "cached", "leaked",
)  # fmt: skip
TRENDS = ("rss_bytes", "leaked", "latency_p50")
_WARM_UP = 0.25
"""Share of the iterations in which an engine still fills its own caches."""
_LEAST = 5
"""Iterations that a trend needs."""
_WORKLOADS = 4
"""Different workloads, in turn."""
_RESUBMIT_S, _REQUEST_TIMEOUT_S = 0.05, 20.0
_START_S = 60.0
"""Time that an engine may need to start and to stop."""


@dataclass(frozen=True)
class Soak:
    """Soak test of one release with one set of treatments.

    `frame` has a row an iteration: level, iteration (from 0), t_s (its end, since the engine was
    ready), seconds (its duration), requests, failed, rejected, retries, latency_p50 and latency_max
    (s, of answered requests), rss_bytes, and with no request running the pages free, cached and
    leaked (neither).
    """

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    budget_s: float
    frame: pd.DataFrame
    endings: Mapping[int, str | None]
    """By level, why it ended early; None if it did not."""

    @property
    def name(self) -> str:
        """The setting in words."""
        names = " + ".join(self.treatments) or "no treatment"
        return f"shortfin {self.release}, prefix sharing {self.prefix_sharing}, {names}"

    def trends(self) -> pd.DataFrame:
        """Return the change of memory, leaked pages and latency per iteration, for each level.

        Columns: level, measure (a column of `frame`), n (iterations), slope (per iteration) and its
        95% interval low to high; NaN with fewer than 5 iterations. The first quarter of the
        iterations is left out. Source: H. Theil (1950) and P. K. Sen (1968), the median slope of
        all pairs, which is robust against single jumps.
        """
        rows = []
        for level, group in self.frame.groupby("level"):
            kept = group.sort_values("iteration")
            kept = kept.iloc[math.ceil(len(kept) * _WARM_UP) :]
            for measure in TRENDS:
                values = kept[kept[measure].notna()]
                fit = (math.nan,) * 3
                if len(values) >= _LEAST:
                    y, x = values[measure].astype(float), values["iteration"]
                    slope, _, low, high = scipy_stats.theilslopes(y, x, 0.95)
                    fit = (slope, low, high)
                rows.append((level, measure, len(values), *fit))
        return pd.DataFrame(rows, columns=["level", "measure", "n", "slope", "low", "high"])


def soak(
    prefix_sharing: str = "none",
    treatments: Sequence[str] = (),
    levels: Sequence[int] = LEVELS,
    budget_s: float = 60.0,
    *,
    release: str | None = None,
    pages: int = 256,
    seed: int = 0,
    workload: str = "mixed",
    batch_sizes: Sequence[int] = (4,),
    model: str | None = None,
) -> Soak:
    """Run one engine a level until its share of `budget_s` seconds has passed.

    Each iteration sends one request from each of `level` clients at once, four workloads in turn,
    or a workload file whole; a refused request is sent again. Between iterations, with no request
    running, resident memory and pages are counted. A level ends early if the engine dies or answers
    no request any more. The start of an engine is not part of the budget. `release` is the
    installed one if None. Raises PlanError, EngineError, ReleaseError, WorkloadError, MachineError
    or ModelError.
    """
    if not (budget_s > 0 and math.isfinite(budget_s)):
        raise EngineError(f"The time of a soak test must be more than 0 seconds, not {budget_s}.")
    release = release or installed_release()
    if release is None:
        raise EngineError("shortfin is not installed here: name the release to test.")
    is_whole = os.path.isfile(workload)
    plan = Plan(
        releases=(release,),
        prefix_sharing=(prefix_sharing,),
        pages=(pages,),
        concurrency=tuple(levels),
        workload=workload,
        repeats=1 if is_whole else max(_WORKLOADS, len(in_turn(workload))),
        rounds=None if is_whole else 1,
        batch_sizes=tuple(batch_sizes),
        model=model,
        seed=seed,
        request_timeout_s=_REQUEST_TIMEOUT_S,
        treatments=(tuple(treatments),),
        resubmit_s=_RESUBMIT_S,
    )
    python, prepared = python_of(release), prepare(plan)
    rows, endings = [], {}
    for level in plan.concurrency:
        trials = [trial for trial in plan.trials() if trial.concurrency == level]
        lines, ending = _run(python, plan, prepared, trials, budget_s / len(plan.concurrency))
        rows += [_row(level, line, prepared, trials) for line in lines]
        endings[level] = ending
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Soak(release, prefix_sharing, tuple(treatments), budget_s, frame, endings)


def _run(
    python: Path, plan: Plan, prepared: Prepared, trials: Sequence[Trial], seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the iterations of one level, and why it ended early."""
    job = {
        "level": trials[0].concurrency,
        "seconds": seconds,
        "config": plan.engine_config(trials[0]),
        "treatments": list(trials[0].treatments),
        "request_timeout_s": plan.request_timeout_s,
        "resubmit_s": plan.resubmit_s,
        "workloads": [[vars(r) for r in prepared.workload(trial).requests] for trial in trials],
    }
    # The last iteration may begin just before the end, and last as long as a request may.
    limit_s, late = seconds + plan.request_timeout_s + _START_S, False
    with children.scratch("cachelab-soak") as place:
        job["logs"] = str(place / "logs")
        child = jobs.Child(python, "analysis.studies.validation.soak_child", job, place)
        try:
            child.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            child.kill()
        lines, last = child.new_answers(), jobs.last_line(child.directory)
    if error := next((line["error"] for line in lines if "error" in line), None):
        raise EngineError(error)
    status = child.process.returncode
    if status > 0 and not late and not any("begun" in line for line in lines):
        raise MachineError(f"The process of the soak test could not start an engine: {last}")
    ending = next((line["ending"] for line in lines if "ending" in line), None)
    if ending is None and late:
        ending = f"It was stopped after {limit_s:g} s."
    if ending is None and status:
        ending = f"Its process ended with status {status}: {last}"
    return [line for line in lines if "iteration" in line], ending


def _row(
    level: int, line: Mapping[str, Any], prepared: Prepared, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Return an iteration as a row, with its answers checked."""
    trial = trials[line["workload"]]
    answers = prepared.answers[trial.release]
    requests = {request.id: request for request in prepared.workload(trial).requests}
    counts = count_requests(
        checked_outcome(row, request, answers.get((request.prompt, request.max_new_tokens)))[0]
        for row in line["answers"]
        for request in [requests[row["request_id"]]]
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
        "leaked": line["leaked"] + line["live"],
    }
