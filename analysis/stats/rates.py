"""Failure rates, outcomes, latencies and hit rates of groups of trials.

A failed request is one that the engine accepted and did not answer right. A rejected request counts
neither for nor against the engine's answers: rates are failures / (requests - rejected).

Requests of one trial share batches and are not independent. Trials are: each has a fresh engine in
a fresh process. Intervals therefore rest on trials (`analysis.stats.clustered`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.runs.derive import exposure
from analysis.runs.schema import FAILURES, OUTCOMES, TABLES
from analysis.runs.tables import to_frame
from analysis.stats.clustered import FEWEST, rate

_BY = ("release", "prefix_sharing", "concurrency")
_COUNTS = ["n", "rejected", "failures", "taken", "refused"]
_RATE_COLUMNS = [
    "n", "rejected", "failures", "rate", "low", "high", "icc", "by_engine", "rejected_share",
    "trials", "trials_failed", "trials_ended_badly", "refused", "at_once",
]  # fmt: skip
_HIT_COLUMNS = ["n", "trials", "prompt_tokens", "cached_tokens", "rate", "low", "high", "over"]


def with_trials(
    requests: pd.DataFrame, trials: pd.DataFrame, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return requests with the columns of their trial (all, or those named)."""
    missing = [name for name in columns or trials.columns if name not in requests.columns]
    beside = trials[list(dict.fromkeys(["trial_id", *missing]))]
    return requests.merge(beside, on="trial_id", how="left", validate="many_to_one")


def per_trial(requests: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with counts of their requests: n, rejected, failures, taken, refused.

    `taken` counts the requests in the denominator of the rate, all but the rejected ones; `refused`
    those that the engine refused at least once. `at_once` is the largest number of requests that
    ran at the same time, NaN if unknown; an engine that refuses requests runs fewer than the
    concurrency that it was offered.
    """
    rejected = requests["outcome"] == "rejected"
    failed = requests["outcome"].isin(FAILURES)
    again = requests["retries"].fillna(0) > 0 if "retries" in requests else False
    columns = [1, rejected, failed, ~rejected, rejected | again]
    counted = pd.DataFrame(dict(zip(_COUNTS, columns, strict=True)), index=requests.index)
    sums = counted.astype(int).groupby(requests["trial_id"]).sum().reset_index()
    whole = trials.merge(sums, on="trial_id", how="left")
    whole[_COUNTS] = whole[_COUNTS].fillna(0).astype(int)
    nothing = [to_frame(name, TABLES[name].empty_table()) for name in ("invocations", "events")]
    met = exposure(trials, requests, *nothing)
    return whole.merge(met[["trial_id", "at_once"]], on="trial_id", validate="one_to_one")


def failure_rates(
    requests: pd.DataFrame, trials: pd.DataFrame, by: Sequence[str] = _BY
) -> pd.DataFrame:
    """Return one row for every group of trials that agree in the columns `by`, in sorted order.

    Columns: those of `by`; n (requests), rejected, failures, rate with its 95% interval low to high
    (NaN if all requests were rejected), icc (intraclass correlation), by_engine (False with fewer
    than five engines: the interval is then by request and too narrow), rejected_share, trials,
    trials_failed (with at least one failure), trials_ended_badly (status other than ok), refused
    and at_once as of `per_trial`.
    """
    rows = []
    for key, group in per_trial(requests, trials).groupby(list(by), dropna=False, observed=True):
        found = rate(group["failures"].tolist(), group["taken"].tolist())
        total, rejected = int(group["n"].sum()), int(group["rejected"].sum())
        values = (
            total, rejected, found.failures, found.value, found.low, found.high, found.icc,
            found.by_engine, rejected / total if total else math.nan, len(group),
            int((group["failures"] > 0).sum()), int((group["status"] != "ok").sum()),
            int(group["refused"].sum()), group["at_once"].max(),
        )  # fmt: skip
        rows.append((*key, *values))
    return pd.DataFrame(rows, columns=[*by, *_RATE_COLUMNS])


def outcome_counts(
    requests: pd.DataFrame, trials: pd.DataFrame, by: Sequence[str] = _BY
) -> pd.DataFrame:
    """Return the number of requests by outcome: one row a group, one column an outcome."""
    joined = with_trials(requests, trials, list(by))
    counts = (
        joined.groupby([*by, "outcome"], dropna=False, observed=True)
        .size()
        .unstack("outcome", fill_value=0)
    )
    counts = counts.reindex(columns=list(OUTCOMES), fill_value=0)
    return counts.rename_axis(columns=None).reset_index()


def latency_summary(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = _BY,
    column: str = "latency_s",
) -> pd.DataFrame:
    """Return n and quantiles (columns p50, p95, p99; seconds) of a time of completed requests.

    Completed requests are those with outcome ok or wrong. The time of a rejection or of a timeout
    does not measure how fast the engine answers.
    """
    joined = with_trials(requests, trials, list(by))
    done = joined[joined["outcome"].isin(("ok", "wrong")) & joined[column].notna()]
    rows = []
    for key, group in done.groupby(list(by), dropna=False, observed=True):
        values = np.quantile(group[column].to_numpy(dtype=float), [0.5, 0.95, 0.99])
        rows.append((*key, len(group), *values.tolist()))
    return pd.DataFrame(rows, columns=[*by, "n", "p50", "p95", "p99"])


def hit_rates(
    requests: pd.DataFrame, trials: pd.DataFrame, by: Sequence[str] = _BY
) -> pd.DataFrame:
    """Return the share of prompt tokens that were found in the prefix cache, for groups of `by`.

    Columns: those of `by`; n (requests), trials, prompt_tokens, cached_tokens, rate with its
    95% bootstrap interval low to high, and `over`, the resampled unit: `trials` where every
    group has at least 5, else `requests`. Rejected requests, and those of which either number is
    unknown, are left out.
    """
    joined = with_trials(requests, trials, list(by))
    known = joined["cached_tokens"].notna() & joined["prompt_tokens"].notna()
    joined = joined[known & (joined["outcome"] != "rejected")]
    joined = joined.assign(
        asked=joined["prompt_tokens"].map(len).astype(float),
        found=joined["cached_tokens"].astype(float),
    )
    groups = [(key, g) for key, g in joined.groupby(list(by), dropna=False) if g["asked"].sum()]
    over = "trials" if all(g["trial_id"].nunique() >= FEWEST for _, g in groups) else "requests"
    rng = np.random.default_rng(0)
    rows = []
    for key, group in groups:
        pairs = group[["found", "asked"]]
        if over == "trials":
            pairs = pairs.groupby(group["trial_id"]).sum()
        low, high = _bootstrap_ratio(pairs.to_numpy(), rng)
        asked, found = int(group["asked"].sum()), int(group["found"].sum())
        trial_count = group["trial_id"].nunique()
        rows.append((*key, len(group), trial_count, asked, found, found / asked, low, high, over))
    return pd.DataFrame(rows, columns=[*by, *_HIT_COLUMNS])


def _bootstrap_ratio(
    pairs: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, float]:
    """Return the 95% percentile interval of sum(first) / sum(second) over resampled rows."""
    ratios = []
    for _ in range(1000):
        found, asked = pairs[rng.integers(0, len(pairs), len(pairs))].sum(axis=0)
        ratios.append(found / asked if asked else math.nan)
    low, high = np.nanquantile(ratios, [0.025, 0.975])
    return float(low), float(high)
