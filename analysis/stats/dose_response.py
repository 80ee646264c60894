"""Failure against evictions: rates, a logistic fit, and the comparison where the rest is equal.

Evictions are pages evicted while a request was served, by whomever. Rejected requests, and requests
whose evictions are not known, are left out of everything here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats
from scipy.special import expit

from analysis.stats.clustered import FEWEST, rate, sign_flip
from analysis.stats.rates import FAILURES, holm, varying, with_trials

ALPHA = 0.05
_TRIALS_FOR_ROBUST = 10


@dataclass(frozen=True)
class EvictionFit:
    """How failure depends on evictions in one group of requests, by logistic regression.

    `odds_ratio` is the factor by which each page evicted during a request multiplies the odds that
    it fails, `low` to `high` its Wald interval. Where no fit exists, they are NaN and `note` says
    why.
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
    """Whether the intervals allow for requests of one trial sharing their fate."""
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


def eviction_bins(evictions: Sequence[int], most: int = 6) -> list[tuple[int, int]]:
    """Return bins for numbers of evictions as (first, last): 0 alone, then each twice as wide.

    Where that makes more than `most` bins above 0, each is 4, 8, ... times as wide as the one
    before. Bins that hold none of the numbers are left out; the last ends at the largest.
    """
    numbers = np.asarray(evictions, dtype=int)
    largest = int(numbers.max(initial=0))
    step = 1
    while largest and largest.bit_length() > step * most:
        step += 1
    bounds = [(0, 0)]
    while bounds[-1][1] < largest:
        first = bounds[-1][1] + 1
        bounds.append((first, min(largest, first * 2**step - 1)))
    return [(a, b) for a, b in bounds if ((numbers >= a) & (numbers <= b)).any()]


def eviction_rates(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the failure rate for every group of `by` and bin of `evictions_during`.

    Columns: those of `by`; first and last (the bin, both included); n, failures, rate with its
    interval low to high over engines (`analysis.stats.clustered.rate`; by_engine says whether there
    were enough of them). Rejected requests, and those whose evictions are not known, are
    left out. The bins are those of `eviction_bins` over all of them.
    """
    by = list(by)
    known = _met_evictions(requests, trials, by)
    bins = eviction_bins(known["evictions"].tolist())
    rows = []
    for key, group in known.groupby(by, dropna=False, sort=True):
        for first, last in bins:
            within = group[group["evictions"].between(first, last)]
            if within.empty:
                continue
            of_trials = within.groupby("trial_id")["failed"].agg(["sum", "size"])
            found = rate(of_trials["sum"].tolist(), of_trials["size"].tolist(), confidence)
            row = {**dict(zip(by, key, strict=True)), "first": first, "last": last, "n": found.n}
            row |= {"failures": found.failures, "rate": found.value, "low": found.low}
            rows.append({**row, "high": found.high, "by_engine": found.by_engine})
    names = [*by, "first", "last", "n", "failures", "rate", "low", "high", "by_engine"]
    return pd.DataFrame(rows, columns=names)


def eviction_fit(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing"),
    confidence: float = 0.95,
) -> list[EvictionFit]:
    """Fit a logistic regression of failure on `evictions_during` to every group of `by`, sorted.

    Rejected requests, and those whose evictions are not known, are left out. With 10 or more trials
    the covariance is robust to requests of one trial sharing their fate (Liang and Zeger 1986),
    with fewer it takes them as independent and the intervals are somewhat too narrow. There is no
    fit where all requests failed, or none, or all met equally many evictions, or some number of
    evictions separates failed requests from the others, for then the estimate is infinite (Albert
    and Anderson 1984).
    """
    by = list(by)
    known = _met_evictions(requests, trials, by)
    return [
        _eviction_fit(dict(zip(by, key, strict=True)), group, confidence)
        for key, group in known.groupby(by, dropna=False, sort=True)
    ]


def _eviction_fit(key: Mapping[str, Any], group: pd.DataFrame, confidence: float) -> EvictionFit:
    failed = group["failed"].to_numpy(dtype=bool)
    evictions = group["evictions"].to_numpy(dtype=float)
    n, failures = len(group), int(failed.sum())
    if note := _no_fit(evictions, failed):
        return EvictionFit(key, n, failures, note)
    import statsmodels.api as sm  # slow to import

    # Scaled, since a slope per page is tiny where there are many.
    scale = evictions.max()
    model = sm.GLM(failed.astype(float), sm.add_constant(evictions / scale), sm.families.Binomial())
    trials = pd.factorize(group["trial_id"])[0]
    clustered = int(trials.max()) + 1 >= _TRIALS_FOR_ROBUST
    how = {"cov_type": "cluster", "cov_kwds": {"groups": trials}} if clustered else {}
    result = model.fit(**how)
    unscale = np.array([1.0, 1.0 / scale])
    params = result.params * unscale
    covariance = result.cov_params() * np.outer(unscale, unscale)
    reach = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    aside = reach * math.sqrt(covariance[1, 1])
    with np.errstate(over="ignore"):
        odds_ratio, low, high = np.exp(params[1] + np.array([0, -aside, aside])).tolist()
    return EvictionFit(
        key, n, failures, "", odds_ratio, low, high, float(result.pvalues[1]), clustered,
        tuple(params.tolist()), tuple(map(tuple, covariance.tolist())), reach,
    )  # fmt: skip


def _no_fit(evictions: npt.NDArray[np.float64], failed: npt.NDArray[np.bool_]) -> str:
    """Say why there is no logistic fit; nothing where there is one."""
    if not failed.any():
        return "no request failed"
    if failed.all():
        return "every request failed"
    if evictions.min() == evictions.max():
        every = int(evictions.min())
        return f"every request met {every} evictions" if every else "no request met an eviction"
    with_failure, without = evictions[failed], evictions[~failed]
    if without.max() <= with_failure.min():
        return "every failed request met at least as many evictions as every other"
    if with_failure.max() <= without.min():
        return "every failed request met at most as many evictions as every other"
    return ""


EQUIVALENT = 1.5
"""The odds ratio below which, and above whose inverse, evictions make no difference that matters.
"""
Word = Literal["explain", "rarer", "accompany", "undecided"]


def configurations(trials: pd.DataFrame) -> list[str]:
    """Return the columns of what is judged each for itself: release and prefix sharing (device)."""
    return ["release", "prefix_sharing", *varying(trials, ["device"])]


def strata_of(trials: pd.DataFrame) -> list[str]:
    """Return the columns that are equal within a stratum: concurrency (pages, workload).

    A small pool brings more evictions, and fails more for other reasons, too.
    """
    return ["concurrency", *varying(trials, ["page_count", "workload"])]


@dataclass(frozen=True)
class EvictionContrast:
    """Failures with evictions against failures without, within strata and regardless of them.

    `odds_ratio` is common to all strata (Mantel-Haenszel), and `p_value` that of a sign-flip test
    on the engines' shares in it. The same of `crude_odds_ratio` and `crude_p_value`, regardless of
    strata. NaN where the data hold no comparison, or have fewer than five engines.
    """

    strata: pd.DataFrame
    """One row a stratum: its values; with_n, with_failures, without_n, without_failures; and
    informative, whether it has both kinds of requests and both kinds of ends, for only then it
    counts."""
    odds_ratio: float
    p_value: float
    engines: int
    """Engines in the informative strata."""
    crude_odds_ratio: float
    crude_p_value: float
    middle: float = math.nan
    """Logarithm of the odds ratio of which the interval is made; NaN without an interval."""
    error: float = math.nan
    """Its jackknife standard error over engines."""

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of the odds ratio over engines; NaN if it is 0 or infinite."""
        if math.isnan(self.error):
            return math.nan, math.nan
        reach = float(scipy_stats.t.ppf(0.5 + confidence / 2, self.engines - 1)) * self.error
        return math.exp(self.middle - reach), math.exp(self.middle + reach)


@dataclass(frozen=True)
class EvictionVerdict:
    """What the data say of the evictions of one configuration, among all that were asked."""

    contrast: EvictionContrast
    p_adjusted: float
    """That evictions explain failures, or make them rarer: for all claims (Holm)."""
    crude_p_adjusted: float
    """That both go together at all: multiplied by the number of claims (Bonferroni)."""
    claims: int
    """Two for each configuration: that evictions explain failures, and that they accompany them."""

    @property
    def confidence(self) -> float:
        """Of the interval that must lie within EQUIVALENT: two tests at ALPHA / claims."""
        return 1 - 2 * ALPHA / self.claims

    @property
    def equivalent(self) -> bool:
        """Whether the odds are bounded to differ by no more than a factor of EQUIVALENT."""
        low, high = self.contrast.interval(self.confidence)
        return low > 1 / EQUIVALENT and high < EQUIVALENT

    @property
    def word(self) -> Word:
        """What is claimed."""
        if self.p_adjusted < ALPHA:
            return "explain" if self.contrast.odds_ratio > 1 else "rarer"
        together = self.contrast.crude_odds_ratio > 1 and self.crude_p_adjusted < ALPHA
        return "accompany" if together and self.equivalent else "undecided"


def judge_evictions(
    contrasts: Sequence[EvictionContrast | None],
) -> list[EvictionVerdict | None]:
    """Return the verdicts on all configurations of a notebook, in their order; None stays None.

    A configuration with a p value risks two claims. That evictions explain failures is tested by
    Holm's method, with the other claims taken for never shown; that they merely accompany them
    takes both of its parts, each with its level divided by the number of claims (Bonferroni). So
    all claims together are false with at most ALPHA.
    """
    known = [c for c in contrasts if c is not None and not math.isnan(c.p_value)]
    claims = 2 * max(1, len(known))
    adjusted = iter(holm([*(c.p_value for c in known), *[1.0] * len(known)]))
    found: list[EvictionVerdict | None] = []
    for one in contrasts:
        if one is None:
            found.append(None)
            continue
        p_value = math.nan if math.isnan(one.p_value) else next(adjusted)
        found.append(EvictionVerdict(one, p_value, min(1.0, claims * one.crude_p_value), claims))
    return found


def evictions_contrast(requests: pd.DataFrame, trials: pd.DataFrame) -> EvictionContrast | None:
    """Compare, in one configuration, requests that met evictions with those that met none.

    None where nothing is risked: no page was evicted, or no request failed. More concurrency (or
    fewer pages) brings more evictions and, for other reasons too, more failures. Within a stratum
    of `strata_of` these are equal, so what is left of the association there is not their doing. It
    need not be the evictions' doing either: a request that takes longer, failing, meets more of
    them.

    Requests of one engine share batches, evictions and fate, so that engines are what is tested and
    left out in turn. Sources: J. Zhang and D. D. Boos (1997), Biometrics 53:1185, for the engines'
    shares in the Mantel-Haenszel statistic; R. G. Miller (1974), Biometrika 61:1, for the interval
    (jackknife, Student's t).
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
        for name, side in (("with", group[group["met"]]), ("without", group[~group["met"]])):
            row |= {f"{name}_n": len(side), f"{name}_failures": int(side["failed"].sum())}
        counts = group["met"].nunique() == 2 and group["failed"].nunique() == 2
        rows.append(row | {"informative": counts})
    names = ["with_n", "with_failures", "without_n", "without_failures", "informative"]
    frame = pd.DataFrame(rows, columns=[*equal, *names])
    return frame.astype({"informative": bool})


def _odds(known: pd.DataFrame, equal: list[str]) -> tuple[float, float, float]:
    """Return the common odds ratio of the strata, and what its interval is made of.

    That is its logarithm with half a request more of each kind, and the jackknife standard error of
    that over engines.
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
        # Half a request of each kind in each stratum, so that no engine left out makes it infinite.
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
