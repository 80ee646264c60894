"""What notebook 09 runs, or loads: the matrix, the demonstrations, and servers beside engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.runs.store import MANIFEST, Run, concatenated, load_run
from analysis.sweep.grid import ENGINE, HTTP
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep

_REQUEST_TIMEOUT_S, _TRIAL_TIMEOUT_S = 15.0, 60.0
"""Deadlines: a release that hangs or freezes costs no more of the hour than this."""


def matrix(
    releases: Sequence[str],
    prefix_sharing: Sequence[str],
    pages: Sequence[int],
    concurrency: Sequence[int],
    rounds: int,
    repeats: int,
    seed: int = 0,
) -> Plan:
    """Return a sanitized sweep of the releases as they are, all with the same prompts."""
    return Plan(
        releases=tuple(releases), prefix_sharing=tuple(prefix_sharing), pages=tuple(pages),
        concurrency=tuple(concurrency), workload="mixed+prefix_reuse", rounds=rounds,
        repeats=repeats, seed=seed, sanitize=True, request_timeout_s=_REQUEST_TIMEOUT_S,
        trial_timeout_s=_TRIAL_TIMEOUT_S,
    )  # fmt: skip


def outside(
    releases: Sequence[str],
    prefix_sharing: Sequence[str],
    concurrency: int,
    repeats: int,
    seed: int = 0,
) -> Plan:
    """Return a sweep that sends the same prompts to each engine in process and to its server."""
    return Plan(
        releases=tuple(releases), prefix_sharing=tuple(prefix_sharing), concurrency=(concurrency,),
        rounds=2, repeats=repeats, seed=seed, targets=(ENGINE, HTTP),
        request_timeout_s=_REQUEST_TIMEOUT_S, trial_timeout_s=_TRIAL_TIMEOUT_S,
    )  # fmt: skip


def run_or_load(
    name: str, plans: Sequence[Plan], home: Path, jobs: int, controls: bool = False
) -> Run:
    """Run the plans, and return them as one run; a run that `home` has under `name` is loaded.

    `controls` as for `load_run`.
    """
    if (home / name / MANIFEST).is_file():
        return load_run(home / name, controls=controls)
    runs = []
    for plan in plans:
        place, command = plan.place(home / name), f"notebook 09_releases, {name}"
        run = run_sweep(plan, place, jobs=jobs, command=command)
        runs.append(load_run(place, controls=True) if controls else run)
    return runs[0] if len(runs) == 1 else concatenated(runs)
