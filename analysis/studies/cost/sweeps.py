"""The sweeps behind a comparison of costs: full batches, arms in turn, timed and then watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.model.artifacts import load_model
from analysis.studies.cost.arms import arms
from analysis.studies.cost.measures import measure, watched
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep


@dataclass(frozen=True)
class Measured:
    """What the trials of a comparison took."""

    measures: pd.DataFrame
    """A row for each trial that was timed; see `measure`."""
    watched: pd.DataFrame
    """A row for each trial that was watched; see `watched`."""
    trials: pd.DataFrame
    """The table `trials` of both."""

    def of(self, prefix_sharing: str) -> Measured:
        """Return what belongs to one way of sharing."""
        frames = (self.measures, self.watched, self.trials)
        return Measured(*(f[f["prefix_sharing"] == prefix_sharing] for f in frames))


def full_batch(concurrency: int) -> int:
    """Return the largest batch size of the model that ships which so many requests fill."""
    sizes = load_model().config.decode_batch_sizes
    return max((size for size in sizes if size <= concurrency), default=min(sizes))


def run_costs(
    home: Path,
    release: str,
    *,
    prefix_sharing: Sequence[str] = ("trie",),
    concurrency: Sequence[int] = (4, 8),
    each: bool = False,
    pages: int = 1024,
    workload: str = "shared_prefix",
    rounds: int = 8,
    repeats: int = 6,
    watched_repeats: int = 6,
    seed: int = 0,
    progress: bool = True,
) -> Measured:
    """Run every arm at every concurrency, and return what it took; called again, what is left.

    Every trial is a fresh engine in a process of its own, one after another. Arms follow each
    other, in reverse order in every second repeat. The engine is compiled for the batch that so
    many requests fill: one that is not full waits for others on 3.1.0, and 3.9.0 refuses what is
    beyond it. Nothing is watched while times are measured; `watched_repeats` more of each are run
    with events recorded, for hits and pages. `each` adds every single fix.
    """
    timed, seen, trials = [], [], []
    for sharing in prefix_sharing:
        compared = arms(release, sharing, each=each)
        for level in concurrency:
            for observe, count in (("nothing", repeats), ("events", watched_repeats)):
                plan = Plan(
                    releases=(release,),
                    prefix_sharing=(sharing,),
                    pages=(pages,),
                    concurrency=(level,),
                    batch_sizes=(full_batch(level),),
                    workload=workload,
                    rounds=rounds,
                    repeats=count,
                    seed=seed,
                    treatments=compared,
                    observe=observe,
                )
                place = plan.place(home / f"{sharing}-{level}-{observe}")
                run = run_sweep(plan, place, progress=progress)
                trials.append(run.trials)
                if observe == "nothing":
                    timed.append(measure(run.requests, run.trials))
                else:
                    seen.append(watched(run.requests, run.trials, run.events))
    frames = (pd.concat(tables, ignore_index=True) for tables in (timed, seen, trials))
    return Measured(*frames)
