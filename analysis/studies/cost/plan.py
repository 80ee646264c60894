"""The arms of a comparison of costs, and the sweeps that measure them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.model.artifacts import load_model
from analysis.studies.cost.measures import LOCK, measure, measure_cache
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
from analysis.treatments import fixes


@dataclass(frozen=True)
class Measured:
    """What the trials of a comparison cost."""

    measures: pd.DataFrame
    """A row for each timed trial; see `measure`."""
    cache: pd.DataFrame
    """A row for each recorded trial; see `measure_cache`."""
    trials: pd.DataFrame
    """The table `trials` of both."""

    def of(self, prefix_sharing: str) -> Measured:
        """Return the part of one way of sharing."""
        frames = (self.measures, self.cache, self.trials)
        return Measured(*(f[f["prefix_sharing"] == prefix_sharing] for f in frames))


def arms(release: str, prefix_sharing: str, *, each: bool = True) -> tuple[tuple[str, ...], ...]:
    """Return the sets of treatments to compare, untreated first, all fixes last.

    `each` adds an arm for every fix of the release. A lock around the cache is always included.
    """
    every = fixes(release, prefix_sharing)
    single = [name for name in every if name != LOCK] if each else []
    return tuple(dict.fromkeys([(), (LOCK,), *((name,) for name in single), every]))


def full_batch(concurrency: int) -> int:
    """Return the largest batch size of the shipped model that so many requests fill."""
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
    recorded_repeats: int = 6,
    seed: int = 0,
    progress: bool = True,
) -> Measured:
    """Run every arm at every concurrency; a second call runs only what is missing.

    Every trial is a fresh engine in its own process, one after another. Arms alternate, in reverse
    order in every second repeat. The engine is compiled for the batch that the requests fill: a
    batch with room may wait for more requests, and a service may refuse what exceeds the batch.
    Nothing is recorded while times are measured; `recorded_repeats` more trials of each arm record
    events, for hits and pages. `each` adds every single fix.
    """
    tables: dict[str, list[pd.DataFrame]] = {"measures": [], "cache": [], "trials": []}
    for sharing in prefix_sharing:
        compared = arms(release, sharing, each=each)
        for level in concurrency:
            for observe, count in (("nothing", repeats), ("events", recorded_repeats)):
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
                tables["trials"].append(run.trials)
                if observe == "nothing":
                    tables["measures"].append(measure(run.requests, run.trials))
                else:
                    tables["cache"].append(measure_cache(run.requests, run.trials, run.events))
    return Measured(**{name: pd.concat(own, ignore_index=True) for name, own in tables.items()})
