"""Failure rates of a run by concurrency, and the tests that compare them.

The question is fixed before the data: does it fail more often at 4 or more concurrent requests than
below? One contrast is tested for each configuration, and one for every two configurations that
differ in one setting. Tests rest on engines; Holm's method adjusts the p values for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd

from analysis.runs.derive import exposure
from analysis.runs.store import Run
from analysis.stats.bounds import holm, upper_bound
from analysis.stats.clustered import (
    Rate,
    engines_needed,
    engines_to_tell,
    permutation,
    rate,
    sign_flip,
)
from analysis.stats.configurations import series_columns, setting_name
from analysis.stats.exposure import Change, changes
from analysis.stats.paired import ENGINE
from analysis.stats.rates import failure_rates, per_trial

ALPHA = 0.05
THRESHOLD = 4
"""The concurrency from which on the report saw failures: it separates the two sides of a test."""
_THROUGH = {"prefix_sharing": ("hits", "evictions", "pages"), "page_count": ("evictions", "pages")}
"""Exposures through which a setting acts: a difference in them is no objection."""


@dataclass(frozen=True)
class Level:
    """One concurrency of a configuration: what was offered, what ran, and how often it failed."""

    offered: int
    ran: int
    """Requests that ran at once at most: fewer than offered where the engine refused some."""
    n: int
    rejected: int
    failures: int
    rate: float
    low: float
    high: float
    by_engine: bool

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Level:
        """Return the level that a row of `failure_rates` describes."""
        names = ("n", "rejected", "failures", "rate", "low", "high", "by_engine")
        return cls(int(row["concurrency"]), ran_at_once(row), *(row[name] for name in names))

    @property
    def accepted(self) -> int:
        """Requests that the engine did not reject."""
        return self.n - self.rejected

    @property
    def label(self) -> str:
        """What ran, and what was offered if it differs."""
        return f"{self.ran} (offered {self.offered})" if self.ran < self.offered else str(self.ran)


@dataclass(frozen=True)
class Series:
    """One configuration, with its concurrencies in ascending order."""

    key: dict[str, Any]
    every_level: list[Level]
    trials: pd.DataFrame
    """As of `per_trial`."""
    icc: list[float]
    """Smallest and largest intraclass correlation of its levels; [] if unknown."""
    threshold: int
    p_value: float = math.nan
    """That requests fail equally often on both sides of the threshold; NaN without a test."""
    tests: int = 1
    """Tests for which the p value is adjusted."""

    @property
    def name(self) -> str:
        """The configuration's name."""
        return setting_name(self.key)

    @property
    def levels(self) -> list[Level]:
        """Concurrencies at which at least one request was accepted."""
        return [level for level in self.every_level if level.accepted]

    @property
    def full(self) -> list[Level]:
        """Those at which as many requests ran at once as were offered."""
        return [level for level in self.levels if level.ran == level.offered]

    @property
    def limited(self) -> list[Level]:
        """Those at which fewer ran. They are in no test."""
        return [level for level in self.levels if level.ran != level.offered]

    @property
    def failing(self) -> list[Level]:
        """Concurrencies from the first one with a failure on."""
        first = next((i for i, level in enumerate(self.levels) if level.failures), len(self.levels))
        return self.levels[first:]

    @property
    def clean(self) -> list[Level]:
        """Concurrencies below the first one with a failure."""
        return self.levels[: len(self.levels) - len(self.failing)]

    @property
    def requests(self) -> int:
        """Requests that were sent."""
        return sum(level.n for level in self.every_level)

    @property
    def rejected(self) -> int:
        """Requests that were rejected."""
        return sum(level.rejected for level in self.every_level)

    @property
    def ended_badly(self) -> int:
        """Trials with a status other than ok."""
        return int((self.trials["status"] != "ok").sum())

    @property
    def everything(self) -> Rate:
        """The failure rate over all concurrencies."""
        return self.side(self.levels)

    @property
    def bounds(self) -> tuple[float, float]:
        """Upper 95% bounds of the share of requests, and of engines, that fail."""
        own = self.trials[self.trials["taken"] > 0]
        engines = upper_bound(int((own["failures"] > 0).sum()), len(own), 1 - ALPHA)
        return upper_bound(self.everything.failures, self.everything.n, 1 - ALPHA), engines

    @property
    def verdict(self) -> str:
        """The answer to "do more fail from the threshold on than below?", in a word or two."""
        if not self.levels:
            return "nothing was accepted"
        if not self.failing:
            return "no request failed"
        if self.missing_side or not self.p_value < ALPHA:
            return "undecided"
        return "yes" if self.above.value > self.below.value else "no, less often"

    @property
    def below(self) -> Rate:
        """The failure rate below the threshold, where the engine ran what it was offered."""
        return self.side([level for level in self.full if level.offered < self.threshold])

    @property
    def above(self) -> Rate:
        """The failure rate from the threshold on, where the engine ran what it was offered."""
        return self.side([level for level in self.full if level.offered >= self.threshold])

    @property
    def missing_side(self) -> str:
        """Whether a side of the threshold is empty: "below", "from" or ""."""
        return "" if self.below.n and self.above.n else "from" if self.below.n else "below"

    @property
    def side_refused(self) -> bool:
        """Whether the missing side is empty because the engine refused requests."""
        below = self.missing_side == "below"
        return any((level.offered < self.threshold) == below for level in self.levels)

    @property
    def tested(self) -> bool:
        """Whether both sides were compared."""
        return not math.isnan(self.p_value)

    def side(self, levels: Sequence[Level]) -> Rate:
        """Return the failure rate over all engines at these concurrencies."""
        own = self.trials[self.trials["concurrency"].isin([level.offered for level in levels])]
        return rate(own["failures"].tolist(), own["taken"].tolist())

    def permuted(self) -> float:
        """Return the p value, not adjusted; NaN where the sides cannot be compared."""
        own = self.trials[self.trials["concurrency"].isin([level.offered for level in self.full])]
        later = own["concurrency"] >= self.threshold
        if own["failures"].sum() in (0, own["taken"].sum()):
            return math.nan
        return permutation(own["failures"].tolist(), own["taken"].tolist(), later.tolist())

    @property
    def needed(self) -> int | None:
        """About how many engines on each side would show the observed difference, 80% power."""
        return engines_to_tell(self.below, self.above, self.tests)


@dataclass(frozen=True)
class Contrast:
    """Two configurations that differ in one setting, compared engine by engine."""

    setting: str
    first: Series
    second: Series
    levels: list[int]
    """Concurrencies from the threshold on at which both engines ran what they were offered."""
    engines: pd.DataFrame
    """One row a pair of engines: failures and taken of both, and net, the difference."""
    exposures: list[Change] | None = None
    """From the engine that failed more often to the other; None if not recorded."""
    p_value: float = math.nan
    tests: int = 1

    @property
    def names(self) -> list[str]:
        """The two values of the setting."""
        return [
            setting_name({self.setting: s.key[self.setting]}) for s in (self.first, self.second)
        ]

    @property
    def same(self) -> str:
        """The settings that are equal."""
        return setting_name({k: v for k, v in self.first.key.items() if k != self.setting})

    @property
    def left_out(self) -> list[int]:
        """Concurrencies at which one of the engines ran fewer requests than it was offered."""
        offered = {level.offered for level in self.second.levels} - set(self.levels)
        threshold = self.first.threshold
        levels = [level.offered for level in self.first.levels]
        return [level for level in levels if level in offered and level >= threshold]

    @property
    def through(self) -> tuple[str, ...]:
        """The exposures through which the setting acts."""
        return _THROUGH.get(self.setting, ())

    @property
    def objections(self) -> list[str]:
        """Exposures that fell, so that the difference may be due to them."""
        return [c.label for c in self.exposures or () if c.fell and c.name not in self.through]

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Failures and requests of the second configuration, then of the first."""
        columns = (("failures_other", "taken_other"), ("failures", "taken"))
        return [(int(self.engines[a].sum()), int(self.engines[b].sum())) for a, b in columns]

    @property
    def net(self) -> int:
        """Failures that the second configuration has more."""
        return int(self.engines["net"].sum())

    @property
    def undecided(self) -> bool:
        """Whether the test shows no difference."""
        return not self.p_value < ALPHA

    @property
    def needed(self) -> int | None:
        """About how many pairs of engines would decide; None if no difference was seen."""
        if not self.net:
            return None
        nets, pairs = self.engines["net"], len(self.engines)
        spread = max(float(nets.std(ddof=1)) if pairs > 1 else 0.0, 1.0)
        return max(engines_needed(float(nets.mean()), spread, self.tests), pairs + 1)


def estimate(run: Run, threshold: int = THRESHOLD) -> tuple[list[Series], list[Contrast]]:
    """Return the configurations of a run and their contrasts, with adjusted p values."""
    series = _series(run, threshold)
    contrasts = _contrasts(run, series)
    p_values = [one.permuted() for one in series]
    for contrast in contrasts:
        nets = contrast.engines["net"]
        # Where every pair of engines agrees, no arrangement of them can be significant, so it does
        # not count as a test (R. E. Tarone 1990, Biometrics 46:515).
        p_values.append(sign_flip(nets.tolist()) if nets.any() else math.nan)
    adjusted = iter(holm([p for p in p_values if not math.isnan(p)]))
    tests = sum(not math.isnan(p) for p in p_values)
    every = [math.nan if math.isnan(p) else next(adjusted) for p in p_values]
    own, theirs = every[: len(series)], every[len(series) :]
    return (
        [replace(s, p_value=p, tests=tests) for s, p in zip(series, own, strict=True)],
        [replace(c, p_value=p, tests=tests) for c, p in zip(contrasts, theirs, strict=True)],
    )


def ran_at_once(row: Mapping[Any, Any]) -> int:
    """Return how many requests ran at once at most, of a row of `failure_rates`.

    Without refusals that is the offered concurrency, even if requests were too short to overlap.
    """
    less = row["refused"] and 0 < row["at_once"] < row["concurrency"]
    return int(row["at_once"] if less else row["concurrency"])


def _series(run: Run, threshold: int) -> list[Series]:
    columns = series_columns(run.trials)
    rates = failure_rates(run.requests, run.trials, [*columns, "concurrency"])
    trials = dict(list(per_trial(run.requests, run.trials).groupby(columns, sort=True)))
    result = []
    for values, rows in rates.groupby(columns, sort=True):
        key = {str(name): value for name, value in zip(columns, values, strict=True)}
        levels = [Level.of(row) for row in rows.sort_values("concurrency").to_dict("records")]
        known = rows["icc"].dropna()
        icc = sorted({known.min(), known.max()}) if len(known) else []
        result.append(Series(key, levels, trials[values], icc, threshold))
    return result


def _contrasts(run: Run, series: Sequence[Series]) -> list[Contrast]:
    """Return every two configurations that differ in one setting, where both can be compared.

    That is where both engines ran what they were offered: an engine that refuses requests has fewer
    of them at once, and may fail less often because of that.
    """
    recorded = not (run.invocations.empty or run.events.empty)
    met = exposure(run.trials, run.requests, run.invocations, run.events) if recorded else None
    found = []
    for one, other in combinations(series, 2):
        differing = [name for name in one.key if one.key[name] != other.key[name]]
        both = {level.offered for level in one.full} & {level.offered for level in other.full}
        levels = sorted(level for level in both if level >= one.threshold)
        if len(differing) != 1 or not levels:
            continue
        columns = [*ENGINE, "failures", "taken", "trial_id"]
        first, second = (
            item.trials.loc[item.trials["concurrency"].isin(levels), columns]
            for item in (one, other)
        )
        pairs = first.merge(second, on=ENGINE, suffixes=("", "_other"))
        pairs = pairs.assign(net=pairs["failures_other"] - pairs["failures"])
        exposures = None if met is None else _exposures(pairs, met)
        found.append(Contrast(differing[0], one, other, levels, pairs, exposures))
    return found


def _exposures(pairs: pd.DataFrame, met: pd.DataFrame) -> list[Change]:
    sides = [
        pairs[[*ENGINE, name]].rename(columns={name: "trial_id"}).merge(met, on="trial_id")
        for name in ("trial_id", "trial_id_other")
    ]
    if pairs["net"].sum() > 0:
        sides.reverse()
    return changes(sides[0], sides[1], ENGINE)
