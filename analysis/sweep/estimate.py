"""Estimates how long trials take, from known values of the release and measured trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from analysis.shortfin.releases import row_of
from analysis.sweep.grid import Trial
from analysis.sweep.plan import Plan

START_S = 3.0
"""Seconds for a trial's process, and its engine's start and end."""


class Estimate:
    """Estimated seconds of a plan's trials, improved by every `measured` trial."""

    def __init__(self, plan: Plan, jobs: int = 1) -> None:
        self._plan, self._jobs = plan, jobs
        self._measured: dict[tuple[str, int], list[float]] = defaultdict(list)

    def measured(self, trial: Trial, seconds: float) -> None:
        """Update the estimate with a finished trial."""
        self._measured[trial.release, trial.concurrency].append(seconds)

    def trial_s(self, trial: Trial) -> float:
        """Return the estimated seconds of one trial, at most its deadline."""
        known = self._measured.get((trial.release, trial.concurrency))
        seconds = fmean(known) if known else START_S + self._asking_s(trial)
        return min(seconds, self._plan.trial_timeout_s)

    def total_s(self, trials: Iterable[Trial]) -> float:
        """Return the estimated seconds of these trials, `jobs` at a time."""
        return sum(self.trial_s(trial) for trial in trials) / self._jobs

    def _asking_s(self, trial: Trial) -> float:
        pace = row_of(trial.release).pace
        batch = max(self._plan.batch_sizes)
        waves = -(-self._plan.request_count(trial.concurrency) // trial.concurrency)
        full, rest = divmod(trial.concurrency, batch)
        further = self._plan.max_new_tokens - 1
        # Full batches share the processor; the remaining requests wait for the batcher's strobes.
        seconds = full * (pace.full_first_token_s + further * pace.full_further_token_s)
        if rest:
            seconds += pace.first_token_s + further * pace.further_token_s
        return waves * seconds
