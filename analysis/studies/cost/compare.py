"""Treated engines against untreated ones, pair by pair, with intervals that rest on engines.

A pair is two trials that differ in their treatments only: same setting, concurrency, repeat, hence
prompts, one soon after the other, each on a fresh engine in a fresh process. Engines are the
independent unit, so that nothing here counts requests. Whether there is a difference is said by the
exact sign-flip test on the logarithms of their quotients, adjusted by Holm's method for all sets,
metrics and settings of the notebook; how large it is, by Student's t on the same, which keeps its
promise with few pairs, where a bootstrap over them is too narrow.
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
from analysis.studies.cost.arms import UNTREATED, rank
from analysis.studies.cost.measures import METRICS, SETTING, WATCHED, Metric

Verdict = Literal["costs", "saves", "no difference shown", "too few trials to tell"]

_ALPHA = 0.05
_LEAST_FREEDOM = 2
_COLUMNS = [
    *SETTING, "arm", "treatments", "metric", "concurrency", "pairs", "left_out", "estimate", "low",
    "high", "spread", "p_value", "p_adjusted", "verdict",
]  # fmt: skip


def costs(
    measures: pd.DataFrame,
    metrics: Sequence[Metric] = METRICS,
    *,
    over: Literal["all", "each"] = "all",
    confidence: float = 0.95,
    among: int = 0,
) -> pd.DataFrame:
    """Return what every treated arm has of every metric, compared with the untreated one.

    `measures` is what `measure` or `watched` returns. One row for a setting, arm and metric, over
    all concurrencies together (`concurrency` is then null), or one for `each`. Columns: `pairs`
    that were compared; `left_out`, pairs in which a request that was taken was not answered, on
    either side, or of which a value is missing; `estimate`, the geometric mean of treated /
    untreated (or the mean of treated - untreated), with its interval `low` to `high`; `spread`, the
    standard deviation within a concurrency (of logarithms, for a ratio); the two-sided `p_value` of
    the sign-flip test, and `p_adjusted` after Holm for all arms, metrics and settings in the
    result, and for as many more as it takes to make `among` (see `comparisons`). Each interval is
    for itself; the `verdict` goes by `p_adjusted`.
    """
    rows = []
    keys = [*SETTING] + (["concurrency"] if over == "each" else [])
    for key, group in measures.groupby(keys, dropna=False, sort=True):
        setting = dict(zip(keys, key, strict=True))
        treatments = dict(zip(group["arm"], group["treatments"], strict=True))
        arms = [arm for arm in sorted(treatments, key=rank) if arm != UNTREATED]
        pairs = {arm: _pairs(group, arm, metrics) for arm in arms}
        for metric in metrics:
            for arm in arms:
                about = {**setting, "arm": arm, "treatments": treatments[arm]}
                rows.append({**about, **_compared(pairs[arm], metric, confidence)})
    _judge(rows, {metric.name: metric for metric in metrics}, among)
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame["concurrency"] = frame["concurrency"].astype("Int64")
    return frame


def comparisons(measures: pd.DataFrame, watched: pd.DataFrame | None = None) -> int:
    """Return how many comparisons a notebook makes of these trials, over all concurrencies."""
    count = 0
    for frame, metrics in ((measures, METRICS), (watched, WATCHED)):
        if frame is not None and len(frame):
            treated = frame[frame["arm"] != UNTREATED]
            count += len(treated[[*SETTING, "arm"]].drop_duplicates()) * len(metrics)
    return count


def pairs_needed(
    spread: float, estimate: float, worth: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return about how many pairs tell whether a treatment costs more than `worth` (0.05: 5%).

    So many that an interval around `estimate` leaves out 1 + `worth` with this power; the two are
    taken to be at least 1% apart. `spread` is the standard deviation of the logarithms of the
    pairs' quotients; NaN gives NaN.
    """
    if math.isnan(spread):
        return math.nan
    distance = max(abs(math.log(estimate) - math.log1p(worth)), math.log1p(0.01))
    z = float(scipy_stats.norm.ppf(1 - alpha / 2) + scipy_stats.norm.ppf(power))
    # Two more, since the spread is not known but estimated (W. C. Guenther 1981).
    return float(math.ceil((z * spread / distance) ** 2) + 2)


def _pairs(group: pd.DataFrame, arm: str, metrics: Sequence[Metric]) -> pd.DataFrame:
    """Return the trials of an arm, each beside its untreated one (columns that end in `_plain`)."""
    beside = ["concurrency", "repeat"]
    columns = [*beside, "comparable", *(metric.name for metric in metrics)]
    treated, plain = (group[group["arm"] == name] for name in (arm, UNTREATED))
    return treated[columns].merge(plain[columns], on=beside, suffixes=("", "_plain"))


def _compared(pairs: pd.DataFrame, metric: Metric, confidence: float) -> dict[str, Any]:
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
    found = _interval(changes, pairs["concurrency"].to_numpy()[fit], confidence)
    if metric.scale == "ratio":
        found |= {name: math.exp(found[name]) for name in ("estimate", "low", "high")}
    return {
        "metric": metric.name,
        "pairs": int(fit.sum()),
        "left_out": int((~fit).sum()),
        **found,
    }


def _interval(
    changes: npt.NDArray[np.float64], levels: npt.NDArray[Any], confidence: float
) -> dict[str, float]:
    """Return the mean change over pairs and its t interval, the levels being fixed strata.

    That a treatment costs more at one concurrency than at another is no noise, so that the spread
    is taken within each.
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
    reach = error * float(special.stdtrit(freedom, 0.5 + confidence / 2))
    p_value = sign_flip(changes)
    return {
        "estimate": mean, "low": mean - reach, "high": mean + reach, "spread": spread,
        "p_value": p_value,
    }  # fmt: skip


def _judge(rows: list[dict[str, Any]], metrics: Mapping[str, Metric], among: int) -> None:
    """Add to all comparisons of a notebook what they come to, each adjusted for all others."""
    known = [row for row in rows if not math.isnan(row["p_value"])]
    others = max(0, among - len(known))
    adjusted = holm([*(row["p_value"] for row in known), *[1.0] * others])
    for row in rows:
        row |= {"p_adjusted": math.nan, "verdict": "too few trials to tell"}
    for row, p_value in zip(known, adjusted, strict=False):
        verdict = _verdict(row["estimate"], p_value, metrics[row["metric"]])
        row |= {"p_adjusted": p_value, "verdict": verdict}


def _verdict(estimate: float, p_value: float, metric: Metric) -> Verdict:
    if p_value >= _ALPHA:
        return "no difference shown"
    rose = estimate > (1 if metric.scale == "ratio" else 0)
    return "costs" if rose == (metric.more == "worse") else "saves"
