"""Failure rate against evictions: rates by bin, a logistic fit, and a stratified comparison.

Evictions are pages evicted for any request while a request was served. Rejected requests, and
requests with unknown evictions, are excluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats
from scipy.special import expit

from analysis.runs.schema import FAILURES
from analysis.stats.clustered import FEWEST, rate, sign_flip
from analysis.stats.configurations import varying
from analysis.stats.rates import with_trials

_TRIALS_FOR_ROBUST = 10
_GROUPS = ("release", "prefix_sharing")
_RATE_COLUMNS = ["first", "last", "n", "failures", "rate", "low", "high", "by_engine"]
_SIDES = (("with", True), ("without", False))


@dataclass(frozen=True)
class EvictionFit:
    """Logistic regression of failure on evictions in one group of requests.

    `odds_ratio` is the factor by which each page evicted during a request multiplies the odds of
    failure, `low` to `high` its Wald interval. Without a fit they are NaN and `note` gives the
    reason.
    """

    key: Mapping[str, Any]
    n: int
    failures: int
    note: str = ""
    odds_ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    clustered: bool = False
    """Whether the intervals allow for correlated requests of one trial."""
    _params: tuple[float, float] = (math.nan, math.nan)
    _covariance: tuple[tuple[float, float], ...] = ((math.nan,) * 2,) * 2
    _reach: float = math.nan

    def curve(
        self, evictions: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the fitted failure rate at each number of evictions, and its interval's ends."""
        x = np.column_stack([np.ones(np.size(evictions)), np.ravel(evictions)]).astype(float)
        middle = x @ np.asarray(self._params)
        spread = np.einsum("ij,jk,ik->i", x, np.asarray(self._covariance), x)
        aside = self._reach * np.sqrt(np.clip(spread, 0, None))
        return expit(middle), expit(middle - aside), expit(middle + aside)


def _met_evictions(
    requests: pd.DataFrame, trials: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """Return accepted requests of known evictions, with columns `evictions` and `failed`."""
    joined = with_trials(requests, trials, list(columns))
    known = joined["evictions_during"].notna() & (joined["outcome"] != "rejected")
    joined = joined[known]
    return joined.assign(
        evictions=joined["evictions_during"].astype(int), failed=joined["outcome"].isin(FAILURES)
    )


def eviction_bins(evictions: Sequence[int]) -> list[tuple[int, int]]:
    """Return bins for numbers of evictions as (first, last): 0 alone, then each twice as wide.

    If that makes more than 6 bins above 0, each bin is 4, 8, ... times as wide as the one
    before. Empty bins are left out; the last bin ends at the largest number.
    """
    numbers = np.asarray(evictions, dtype=int)
    largest = int(numbers.max(initial=0))
    step = 1
    while largest and largest.bit_length() > step * 6:
        step += 1
    bounds = [(0, 0)]
    while bounds[-1][1] < largest:
        first = bounds[-1][1] + 1
        bounds.append((first, min(largest, first * 2**step - 1)))
    return [(a, b) for a, b in bounds if ((numbers >= a) & (numbers <= b)).any()]


def eviction_rates(
    requests: pd.DataFrame, trials: pd.DataFrame, by: Sequence[str] = _GROUPS
) -> pd.DataFrame:
    """Return the failure rate for every group of `by` and bin of `evictions_during`.

    Columns: those of `by`; first and last (the bin, both included); n, failures, rate with its
    95% interval low to high over engines, and by_engine (False where there were too few engines).
    The bins are those of `eviction_bins` over all groups.
    """
    known = _met_evictions(requests, trials, by)
    bins = eviction_bins(known["evictions"].tolist())
    rows = []
    for key, group in known.groupby(list(by), dropna=False, sort=True):
        for first, last in bins:
            within = group[group["evictions"].between(first, last)]
            if within.empty:
                continue
            of_trials = within.groupby("trial_id")["failed"].agg(["sum", "size"])
            found = rate(of_trials["sum"].tolist(), of_trials["size"].tolist())
            values = found.n, found.failures, found.value, found.low, found.high, found.by_engine
            rows.append((*key, first, last, *values))
    return pd.DataFrame(rows, columns=[*by, *_RATE_COLUMNS])


def eviction_fit(
    requests: pd.DataFrame, trials: pd.DataFrame, by: Sequence[str] = _GROUPS
) -> list[EvictionFit]:
    """Fit a logistic regression of failure on `evictions_during` to every group of `by`, sorted.

    With 10 or more trials the covariance is robust to correlated requests of one trial (Liang and
    Zeger 1986); with fewer it takes them as independent and the intervals are too narrow. There is
    no fit where all requests failed, or none, or all met equally many evictions, or where some
    number of evictions separates failed requests from the others, because the estimate is then
    infinite (Albert and Anderson 1984).
    """
    known = _met_evictions(requests, trials, by)
    return [
        _eviction_fit(dict(zip(by, key, strict=True)), group)
        for key, group in known.groupby(list(by), dropna=False, sort=True)
    ]


def _eviction_fit(key: Mapping[str, Any], group: pd.DataFrame) -> EvictionFit:
    failed = group["failed"].to_numpy(dtype=bool)
    evictions = group["evictions"].to_numpy(dtype=float)
    n, failures = len(group), int(failed.sum())
    if note := _no_fit(evictions, failed):
        return EvictionFit(key, n, failures, note)
    import statsmodels.api as sm  # slow to import

    # Scaled, because a slope per page is tiny where there are many.
    scale = evictions.max()
    model = sm.GLM(failed.astype(float), sm.add_constant(evictions / scale), sm.families.Binomial())
    trials = pd.factorize(group["trial_id"])[0]
    clustered = int(trials.max()) + 1 >= _TRIALS_FOR_ROBUST
    how = {"cov_type": "cluster", "cov_kwds": {"groups": trials}} if clustered else {}
    result = model.fit(**how)
    unscale = np.array([1.0, 1.0 / scale])
    params = result.params * unscale
    covariance = result.cov_params() * np.outer(unscale, unscale)
    reach = float(scipy_stats.norm.ppf(0.975))
    aside = reach * math.sqrt(covariance[1, 1])
    with np.errstate(over="ignore"):
        odds_ratio, low, high = np.exp(params[1] + np.array([0, -aside, aside])).tolist()
    return EvictionFit(
        key, n, failures, "", odds_ratio, low, high, float(result.pvalues[1]), clustered,
        tuple(params.tolist()), tuple(map(tuple, covariance.tolist())), reach,
    )  # fmt: skip


def _no_fit(evictions: npt.NDArray[np.float64], failed: npt.NDArray[np.bool_]) -> str:
    """Return why there is no logistic fit; "" if there is one."""
    if not failed.any():
        return "no request failed"
    if failed.all():
        return "every request failed"
    if evictions.min() == evictions.max():
        every = int(evictions.min())
        return f"every request met {every} evictions" if every else "no request met an eviction"
    with_failure, without = evictions[failed], evictions[~failed]
    if without.max() <= with_failure.min():
        return "all failed requests had at least as many evictions as all others"
    if with_failure.max() <= without.min():
        return "all failed requests had at most as many evictions as all others"
    return ""


def configurations(trials: pd.DataFrame) -> list[str]:
    """Return the columns of a configuration: release, prefix sharing, and others that vary.

    Each configuration is compared on its own.
    """
    return ["release", "prefix_sharing", *varying(trials, ["device", "options", "target"])]


def strata_of(trials: pd.DataFrame) -> list[str]:
    """Return the columns that are equal within a stratum: concurrency, and pages and workload.

    A small pool brings more evictions, and more failures for other reasons, too.
    """
    return ["concurrency", *varying(trials, ["page_count", "workload"])]


@dataclass(frozen=True)
class EvictionContrast:
    """Failures with evictions against failures without, within strata and regardless of them.

    `odds_ratio` is common to all strata (Mantel-Haenszel); `p_value` is that of a sign-flip test on
    the engines' shares in it. `crude_odds_ratio` and `crude_p_value` disregard the strata. NaN
    where there is no comparison, or fewer than five engines.
    """

    strata: pd.DataFrame
    """One row a stratum: its values; with_n, with_failures, without_n, without_failures; and
    informative (it has requests with and without evictions, and both failed and other ones)."""
    odds_ratio: float
    p_value: float
    engines: int
    """Engines in the informative strata."""
    crude_odds_ratio: float
    crude_p_value: float
    middle: float = math.nan
    """Logarithm of the odds ratio at the centre of the interval; NaN without an interval."""
    error: float = math.nan
    """Its jackknife standard error over engines."""

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of the odds ratio over engines; NaN if it is 0 or infinite."""
        if math.isnan(self.error):
            return math.nan, math.nan
        reach = float(scipy_stats.t.ppf(0.5 + confidence / 2, self.engines - 1)) * self.error
        return math.exp(self.middle - reach), math.exp(self.middle + reach)


def evictions_contrast(requests: pd.DataFrame, trials: pd.DataFrame) -> EvictionContrast | None:
    """Compare, in one configuration, requests that met evictions with those that met none.

    None if no page was evicted or no request failed. More concurrency (or fewer pages) brings more
    evictions and, for other reasons too, more failures; within a stratum of `strata_of` these are
    equal. A remaining association need not be causal: a request that fails may take longer and
    therefore meet more evictions.

    Requests of one engine are not independent, so the test and the jackknife rest on engines.
    Sources: J. Zhang and D. D. Boos (1997), Biometrics 53:1185, for the engines' shares in the
    Mantel-Haenszel statistic; R. G. Miller (1974), Biometrika 61:1, for the interval.
    """
    equal = strata_of(trials)
    known = _met_evictions(requests, trials, equal)
    known = known.assign(met=known["evictions"] > 0)
    if not known["met"].any() or not known["failed"].any():
        return None
    strata = _strata(known, equal)
    keys = strata.loc[strata["informative"], equal]
    own = known.merge(keys, on=equal)
    ratio, middle, error = _odds(own, equal)
    crude = known.assign(all=1)
    return EvictionContrast(
        strata,
        ratio,
        _by_engine(own, equal),
        own["trial_id"].nunique(),
        _odds(crude, ["all"])[0],
        _by_engine(crude, ["all"]),
        middle,
        error,
    )


def _strata(known: pd.DataFrame, equal: list[str]) -> pd.DataFrame:
    rows = []
    for key, group in known.groupby(equal, dropna=False, sort=True):
        row: dict[str, Any] = dict(zip(equal, key, strict=True))
        for name, met in _SIDES:
            failed = group.loc[group["met"] == met, "failed"]
            row |= {f"{name}_n": len(failed), f"{name}_failures": int(failed.sum())}
        row["informative"] = group["met"].nunique() == 2 and group["failed"].nunique() == 2
        rows.append(row)
    return pd.DataFrame(rows).astype({"informative": bool})


def _odds(known: pd.DataFrame, equal: list[str]) -> tuple[float, float, float]:
    """Return the common odds ratio of the strata, and the centre and error of its interval.

    The centre is its logarithm with half a request more of each kind, the error the jackknife
    standard error of the centre over engines.
    """
    if known.empty:
        return (math.nan,) * 3
    strata = known.groupby(equal, dropna=False).ngroup().to_numpy()
    engines = pd.factorize(known["trial_id"])[0]
    met, failed = known["met"].to_numpy(bool), known["failed"].to_numpy(bool)
    count = int(engines.max()) + 1
    tables = np.zeros((count, int(strata.max()) + 1, 2, 2))
    np.add.at(tables, (engines, strata, met.astype(int), failed.astype(int)), 1)
    whole = tables.sum(axis=0)
    ratio = float(_mantel_haenszel(whole[None])[0])
    if count < FEWEST or not 0 < ratio < math.inf:
        return ratio, math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        # Half a request of each kind in each stratum keeps it finite if one engine is left out.
        logs = np.log(_mantel_haenszel(whole[None] - tables + 0.5))
        middle = float(np.log(_mantel_haenszel(whole[None] + 0.5))[0])
    error = math.sqrt((count - 1) / count * float(((logs - logs.mean()) ** 2).sum()))
    return ratio, middle, error


def _mantel_haenszel(tables: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the common odds ratio of tables (several, strata, met evictions, failed)."""
    totals = np.clip(tables.sum(axis=(2, 3)), 1, None)
    for_it = (tables[:, :, 1, 1] * tables[:, :, 0, 0] / totals).sum(axis=1)
    against = (tables[:, :, 1, 0] * tables[:, :, 0, 1] / totals).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: npt.NDArray[np.float64] = for_it / against
    return ratios


def _by_engine(known: pd.DataFrame, equal: list[str]) -> float:
    """Return the p value of a sign-flip test on the engines' shares in the association.

    NaN for fewer than five engines.
    """
    if known["trial_id"].nunique() < FEWEST:
        return math.nan
    means = known.groupby(equal, dropna=False)[["met", "failed"]].transform("mean")
    apart = known[["met", "failed"]].astype(float) - means
    shares = (apart["met"] * apart["failed"]).groupby(known["trial_id"]).sum()
    return sign_flip(shares.to_numpy(dtype=float))
