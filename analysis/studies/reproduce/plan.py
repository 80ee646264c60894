"""What notebook 01 runs: the sweep, and the prompts of wrong answers again, alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from analysis.runs.store import Run, concatenated
from analysis.shortfin.releases import row_of
from analysis.stats.checks import EXACT, by_check
from analysis.studies.reproduce.estimates import THRESHOLD
from analysis.studies.reproduce.reported_test import treatment_set

_WHILE_WAITING, _LARGE_WHILE_WAITING = 24, 2
"""Times as many engines at the same time, where they wait instead of computing: of the counting
model, and of a language model."""
_BYTES, _LARGE_BYTES = 200e6, 2e9
"""Memory that an engine of each takes."""
_TRIAL_S = 600.0
"""Deadline of a trial: one takes a minute, and more beside others on a busy machine."""


def run_both_sides(
    release: str,
    home: Path,
    concurrency: Sequence[int],
    rounds: tuple[int, int],
    jobs: int,
    *,
    treatments: Sequence[str] = ("none",),
    model: Path | None = None,
    **settings: Any,
) -> Run:
    """Run a sweep of the concurrencies below `THRESHOLD` and one of the others; return both.

    `rounds` are those below the threshold and those from it on; `jobs` engines run at the same
    time, more of them while a release only waits for full batches. `treatments` are sets such
    as `none`, `all` or `a+b`; `settings` are further fields of `Plan`. What is on disk below `home`
    is not run again. In the returned run, an answer is ok if it equals the reference decoder's,
    whose text is `expected_text`, and the column `treatments` has the sets as they were given.
    Raises what `run_sweep` raises.
    """
    from analysis.sweep.plan import Plan
    from analysis.sweep.runner import run_sweep

    low = [level for level in concurrency if level < THRESHOLD]
    high = [level for level in concurrency if level >= THRESHOLD]
    sides = (("below", low, _at_once(release, jobs, model)), ("from", high, jobs))
    runs = []
    for (name, levels, at_once), each in zip(sides, rounds, strict=True):
        if levels:
            plan = Plan(
                releases=(release,), concurrency=tuple(levels), rounds=each, observe="events",
                model=str(model) if model else None, trial_timeout_s=_TRIAL_S,
                treatments=tuple(treatment_set(names) for names in treatments), **settings,
            )  # fmt: skip
            runs.append(run_sweep(plan, plan.place(home / name), jobs=at_once))
    return _by_exact_equality(_as_given(concatenated(runs), treatments), model)


def _at_once(release: str, jobs: int, model: object) -> int:
    """Return how many engines run at the same time where batches are not full."""
    if not row_of(release).pace.waits:
        return jobs
    times, size = (_LARGE_WHILE_WAITING, _LARGE_BYTES) if model else (_WHILE_WAITING, _BYTES)
    fit = int(psutil.virtual_memory().available / size)
    return max(jobs, min(jobs * times, fit))


def _as_given(run: Run, treatments: Sequence[str]) -> Run:
    """Return the run with each set of treatments named as it was given: `all` has many members."""
    from analysis.treatments import expand

    settings = zip(run.trials["release"], run.trials["prefix_sharing"], strict=True)
    meant = {
        (release, sharing, expand(treatment_set(names), release, sharing)): treatment_set(names)
        for release, sharing in set(settings)
        for names in treatments
    }
    keys = run.trials[["release", "prefix_sharing", "treatments"]].itertuples(index=False)
    given = pd.Series([meant[tuple(key)] for key in keys], index=run.trials.index, dtype=object)
    return replace(run, trials=run.trials.assign(treatments=given))


def _by_exact_equality(run: Run, model: Path | None) -> Run:
    from analysis.model.artifacts import load_model
    from analysis.model.tokenizer import ModelTokenizer

    decode = ModelTokenizer(load_model(model)).decode
    right = run.requests["reference_tokens"].map(decode)
    return replace(run, requests=by_check(run.requests.assign(expected_text=right), EXACT))


def ask_again(
    run: Run, wrong: pd.DataFrame, jobs: int
) -> list[tuple[str, str, str, Sequence[int] | None]]:
    """Send the prompts of wrong answers again, each alone on a fresh, untreated engine.

    `wrong` is the frame of `plots.wrong_answers`. Each prompt is sent with its own prefix sharing
    and, if that is the trie, without prefix sharing, too. Returns what `plots.asked_again` takes.
    """
    from analysis.sweep.rerun_solo import rerun_wrong_prompts, wrong_prompts

    if wrong.empty:
        return []
    setting = ["prompt", "release", "prefix_sharing", "page_count"]
    own = wrong[setting].merge(wrong_prompts(run), on=setting)
    without = own[own["prefix_sharing"] != "none"].assign(prefix_sharing="none")
    asked = pd.concat([own, without], ignore_index=True)
    model = run.manifest["plan"].get("model")
    jobs = max(_at_once(release, jobs, model) for release in asked["release"].unique())
    answers = rerun_wrong_prompts(run, prompts=asked, jobs=jobs)
    answers = asked[setting].merge(answers, on=setting).sort_values("prompt", kind="stable")
    columns = ["prompt", "prefix_sharing", "text", "tokens"]
    return list(answers[columns].itertuples(index=False, name=None))
