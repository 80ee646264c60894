"""How long trials take: what its adapter says of a release's pace, until trials are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from analysis.sweep.plan import Plan, Trial

START_S = 3.0
"""A trial's process, its engine's start and its end."""
_PACE = (0.1, 0.02, 0.02, 0.005)
"""Where an adapter does not say: first token and each further one, alone and in a full batch."""


class Estimate:
    """Seconds that trials of a plan take; better with every trial that was `measured`."""

    def __init__(self, plan: Plan, jobs: int = 1) -> None:
        self._plan, self._jobs = plan, jobs
        self._measured: dict[tuple[str, int], list[float]] = defaultdict(list)

    def measured(self, trial: Trial, seconds: float) -> None:
        """Learn from a trial that has ended."""
        self._measured[trial.release, trial.concurrency].append(seconds)

    def trial_s(self, trial: Trial) -> float:
        """Return the seconds that one trial may take, its deadline at most."""
        known = self._measured.get((trial.release, trial.concurrency))
        seconds = fmean(known) if known else START_S + self._asking_s(trial)
        return min(seconds, self._plan.trial_timeout_s)

    def total_s(self, trials: Iterable[Trial]) -> float:
        """Return the seconds that these trials may take together, `jobs` at a time."""
        return sum(self.trial_s(trial) for trial in trials) / self._jobs

    def _asking_s(self, trial: Trial) -> float:
        first, token, full_first, full_token = _pace(trial.release)
        batch = max(self._plan.batch_sizes)
        waves = -(-self._plan.request_count(trial.concurrency) // trial.concurrency)
        full, rest = divmod(trial.concurrency, batch)
        further = self._plan.max_new_tokens - 1
        # Full batches share the processor; what is left over waits for the batcher's strobes.
        seconds = full * (full_first + further * full_token)
        if rest:
            seconds += first + further * token
        return waves * seconds


def _pace(release: str) -> tuple[float, float, float, float]:
    from analysis import shortfin as adapters

    paces: dict[str, tuple[float, float, float, float]] = getattr(adapters, "PACE_S", {})
    return paces.get(release, _PACE)
