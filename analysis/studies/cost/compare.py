"""Treated engines against untreated ones, pair by pair; engines are the independent unit.

A pair is two trials that differ in their treatments only (same setting, concurrency and repeat,
hence prompts), one soon after the other, each on a fresh engine. Whether there is a difference is
decided by the exact sign-flip test on the logarithms of their ratios, adjusted by Holm's method for
all comparisons of the notebook. Its size has a Student t interval on the same values, which keeps
its coverage with few pairs, where a bootstrap is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special
from scipy import stats as scipy_stats

from analysis.stats.bounds import holm
from analysis.stats.clustered import sign_flip
from analysis.studies.cost.measures import (
    CACHE_METRICS,
    METRICS,
    SETTING,
    UNTREATED,
    Metric,
    rank,
)

Verdict = Literal["costs", "saves", "no difference shown", "too few trials"]

_ALPHA = 0.05
_LEAST_FREEDOM = 2
_COLUMNS = [
    *SETTING, "arm", "treatments", "metric", "pairs", "left_out", "estimate", "low",
    "high", "spread", "p_value", "p_adjusted", "verdict",
]  # fmt: skip


def costs(
    measures: pd.DataFrame, metrics: Sequence[Metric] = METRICS, *, among: int = 0
) -> pd.DataFrame:
    """Compare every metric of every treated arm with the untreated arm.

    `measures` comes from `measure` or `measure_cache`. One row for a setting, arm and metric, over
    all concurrencies. Columns: `pairs` compared;
    `left_out`, pairs with an accepted request that was not answered, or a missing value;
    `estimate`, the geometric mean of treated / untreated (or the mean of treated - untreated), with
    its 95% interval `low` to `high`; `spread`, the standard deviation within a concurrency (of
    logarithms, for a ratio); the two-sided `p_value` of the sign-flip test, and `p_adjusted` by
    Holm for all rows, and for more up to `among` (see `comparisons`). Intervals are not adjusted;
    the `verdict` follows `p_adjusted`.
    """
    rows = []
    for key, group in measures.groupby([*SETTING], dropna=False, sort=True):
        setting = dict(zip(SETTING, key, strict=True))
        treatments = dict(zip(group["arm"], group["treatments"], strict=True))
        arms = [arm for arm in sorted(treatments, key=rank) if arm != UNTREATED]
        pairs = {arm: _pairs(group, arm, metrics) for arm in arms}
        for metric in metrics:
            for arm in arms:
                about = {**setting, "arm": arm, "treatments": treatments[arm]}
                rows.append({**about, **_compared(pairs[arm], metric)})
    _add_verdicts(rows, {metric.name: metric for metric in metrics}, among)
    return pd.DataFrame(rows, columns=_COLUMNS)


def comparisons(measures: pd.DataFrame, cache: pd.DataFrame | None = None) -> int:
    """Return the number of comparisons of a notebook, over all concurrencies."""
    count = 0
    for frame, metrics in ((measures, METRICS), (cache, CACHE_METRICS)):
        if frame is not None and len(frame):
            treated = frame[frame["arm"] != UNTREATED]
            count += len(treated[[*SETTING, "arm"]].drop_duplicates()) * len(metrics)
    return count


def pairs_needed(spread: float, estimate: float, worth: float) -> float:
    """Return the pairs that decide whether a treatment costs more than `worth` (0.05: 5%).

    With so many an interval around `estimate` excludes 1 + `worth` with 80% power; the two are
    taken to be at least 1% apart. `spread` is the standard deviation of the logarithms of the
    ratios; NaN gives NaN.
    """
    if math.isnan(spread):
        return math.nan
    distance = max(abs(math.log(estimate) - math.log1p(worth)), math.log1p(0.01))
    z = float(scipy_stats.norm.ppf(1 - _ALPHA / 2) + scipy_stats.norm.ppf(0.8))
    # Two more, since the spread is estimated (W. C. Guenther 1981).
    return float(math.ceil((z * spread / distance) ** 2) + 2)


def _pairs(group: pd.DataFrame, arm: str, metrics: Sequence[Metric]) -> pd.DataFrame:
    """Return the trials of an arm, with the columns of the untreated one as `..._plain`."""
    beside = ["concurrency", "repeat"]
    columns = [*beside, "comparable", *(metric.name for metric in metrics)]
    treated, plain = (group[group["arm"] == name] for name in (arm, UNTREATED))
    return treated[columns].merge(plain[columns], on=beside, suffixes=("", "_plain"))


def _compared(pairs: pd.DataFrame, metric: Metric) -> dict[str, Any]:
    ours, theirs = (
        pairs[name].to_numpy(dtype=float, na_value=math.nan)
        for name in (metric.name, f"{metric.name}_plain")
    )
    fit = (pairs["comparable"] & pairs["comparable_plain"]).to_numpy(dtype=bool)
    fit = fit & ~np.isnan(ours) & ~np.isnan(theirs)
    if metric.scale == "ratio":
        fit &= (ours > 0) & (theirs > 0)
        changes = np.log(ours[fit] / theirs[fit])
    else:
        changes = (ours - theirs)[fit]
    found = _interval(changes, pairs["concurrency"].to_numpy()[fit])
    if metric.scale == "ratio":
        found |= {name: math.exp(found[name]) for name in ("estimate", "low", "high")}
    return {
        "metric": metric.name,
        "pairs": int(fit.sum()),
        "left_out": int((~fit).sum()),
        **found,
    }


def _interval(changes: npt.NDArray[np.float64], levels: npt.NDArray[Any]) -> dict[str, float]:
    """Return the mean change over pairs and its t interval, with concurrencies as fixed strata.

    A cost that differs between concurrencies is no noise: the spread is taken within each.
    """
    if not len(changes):
        return dict.fromkeys(("estimate", "low", "high", "spread", "p_value"), math.nan)
    mean = float(changes.mean())
    strata = np.unique(levels)
    freedom = len(changes) - len(strata)
    if freedom < _LEAST_FREEDOM:
        rest = dict.fromkeys(("low", "high", "spread", "p_value"), math.nan)
        return {"estimate": mean, **rest}
    within = sum(
        float(((changes[own] - changes[own].mean()) ** 2).sum())
        for own in (levels == level for level in strata)
    )
    spread = math.sqrt(within / freedom)
    error = spread / math.sqrt(len(changes))
    reach = error * float(special.stdtrit(freedom, 0.975))
    return {
        "estimate": mean, "low": mean - reach, "high": mean + reach, "spread": spread,
        "p_value": sign_flip(changes),
    }  # fmt: skip


def _add_verdicts(rows: list[dict[str, Any]], metrics: Mapping[str, Metric], among: int) -> None:
    """Add the adjusted p value and the verdict to every row."""
    known = [row for row in rows if not math.isnan(row["p_value"])]
    others = max(0, among - len(known))
    adjusted = holm([*(row["p_value"] for row in known), *[1.0] * others])
    for row in rows:
        row |= {"p_adjusted": math.nan, "verdict": "too few trials"}
    for row, p_value in zip(known, adjusted, strict=False):
        verdict = _verdict(row["estimate"], p_value, metrics[row["metric"]])
        row |= {"p_adjusted": p_value, "verdict": verdict}


def _verdict(estimate: float, p_value: float, metric: Metric) -> Verdict:
    if p_value >= _ALPHA:
        return "no difference shown"
    rose = estimate > (1 if metric.scale == "ratio" else 0)
    return "costs" if rose == (metric.more == "worse") else "saves"
