"""Rates with intervals, and how many requests a question needs.

A failed request is one that the engine took and did not answer right: wrong, empty, error, timeout
or engine_died. A rejected request was refused before it was worked on; it counts neither for nor
against the engine's answers, so rates are failures / (requests - rejected), and rejections are
shown apart.

Requests of one trial share batches, and with them their fate; trials are independent, since each
has a fresh engine in a fresh process. So intervals rest on trials (`analysis.stats.clustered`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.runs.derive import exposure
from analysis.runs.schema import FAILURES, OUTCOMES, TABLES
from analysis.runs.tables import to_frame
from analysis.stats.clustered import rate
from analysis.stats.exact import holm, wilson

__all__ = [
    "CONFIGURATION",
    "FAILURES",
    "failure_rates",
    "hit_rates",
    "holm",
    "latency_summary",
    "least_rate",
    "outcome_counts",
    "per_trial",
    "requests_to_see",
    "varying",
    "wilson",
    "with_trials",
]

CONFIGURATION = ("release", "device", "prefix_sharing", "page_count", "workload", "treatments")


def requests_to_see(rate: float, confidence: float = 0.95) -> int:
    """Return how many requests show a fault of this rate at least once with this probability."""
    if not 0 < rate < 1:
        raise ValueError(f"the rate must lie between 0 and 1, not {rate}")
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def least_rate(requests: int, confidence: float = 0.95) -> float:
    """Return the least failure rate that so many requests show with this probability."""
    return -math.expm1(math.log1p(-confidence) / requests)


def with_trials(
    requests: pd.DataFrame, trials: pd.DataFrame, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return requests with the columns of their trial beside them (all, or those named)."""
    missing = [name for name in columns or trials.columns if name not in requests.columns]
    beside = trials[list(dict.fromkeys(["trial_id", *missing]))]
    return requests.merge(beside, on="trial_id", how="left", validate="many_to_one")


def per_trial(
    requests: pd.DataFrame, trials: pd.DataFrame, failures: Sequence[str] = FAILURES
) -> pd.DataFrame:
    """Return the trials with what became of their requests: n, rejected, failures, taken, refused.

    `refused` are those that the engine refused at least once, also if it took them later.
    Then `at_once`, how many requests the engine worked on at once at most: where it refuses what is
    beyond its batch, less than the concurrency that it was offered (NaN if unknown). `taken` are
    the requests that count: without those rejected, unless `failures` has these too.
    """
    rejected = requests["outcome"] == "rejected"
    failed = requests["outcome"].isin(tuple(failures))
    again = requests["retries"].fillna(0) > 0 if "retries" in requests else False
    counted = pd.DataFrame(
        {
            "trial_id": requests["trial_id"],
            "n": 1,
            "rejected": rejected.astype(int),
            "failures": failed.astype(int),
            "taken": (failed | ~rejected).astype(int),
            "refused": (rejected | again).astype(int),
        }
    )
    counts = ["n", "rejected", "failures", "taken", "refused"]
    whole = trials.merge(
        counted.groupby("trial_id", as_index=False).sum(), on="trial_id", how="left"
    )
    whole[counts] = whole[counts].fillna(0).astype(int)
    nothing = [to_frame(name, TABLES[name].empty_table()) for name in ("invocations", "events")]
    met = exposure(trials, requests, *nothing)
    return whole.merge(met[["trial_id", "at_once"]], on="trial_id", validate="one_to_one")


def failure_rates(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return one row for every group of trials that agree in the columns `by`, in sorted order.

    Columns: those of `by`; n (requests), rejected, failures, rate = failures / (n - rejected) with
    its interval low to high (NaN if all were rejected), icc (of an engine's requests), by_engine
    (whether the interval rests on engines; with fewer than five it is by request only, and too
    narrow), rejected_share; trials, trials_failed (with at least one failure), trials_ended_badly
    (status other than ok); refused (requests, at least once, also if taken later); and at_once,
    the most requests that an engine worked on at once.
    """
    by = list(by)
    counted = per_trial(requests, trials)
    rows = []
    for key, group in counted.groupby(by, dropna=False, sort=True):
        found = rate(group["failures"].tolist(), group["taken"].tolist(), confidence)
        total, failed = int(group["n"].sum()), int((group["failures"] > 0).sum())
        rejected = int(group["rejected"].sum())
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "n": total,
                "rejected": rejected,
                "failures": found.failures,
                "rate": found.value,
                "low": found.low,
                "high": found.high,
                "icc": found.icc,
                "by_engine": found.by_engine,
                "rejected_share": rejected / total if total else math.nan,
                "trials": len(group),
                "trials_failed": failed,
                "trials_ended_badly": int((group["status"] != "ok").sum()),
                "refused": int(group["refused"].sum()),
                "at_once": group["at_once"].max(),
            }
        )
    order = [*by, "n", "rejected", "failures", "rate", "low", "high", "icc", "by_engine"]
    order += ["rejected_share", "trials", "trials_failed", "trials_ended_badly"]
    return pd.DataFrame(rows, columns=[*order, "refused", "at_once"])


def outcome_counts(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
) -> pd.DataFrame:
    """Return how many requests ended in each outcome: one row a group, one column an outcome."""
    joined = with_trials(requests, trials, list(by))
    counts = joined.groupby([*by, "outcome"], dropna=False).size().unstack("outcome", fill_value=0)
    return (
        counts.reindex(columns=list(OUTCOMES), fill_value=0).rename_axis(columns=None).reset_index()
    )


def latency_summary(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
    column: str = "latency_s",
    quantiles: Sequence[float] = (0.5, 0.95, 0.99),
) -> pd.DataFrame:
    """Return n and quantiles (columns p50, p95, p99; seconds) of a time of all completed requests.

    Completed are ok and wrong ones: a wrong answer took its time like a right one, while the time
    of a rejection or a timeout says nothing about how fast the engine answers.
    """
    joined = with_trials(requests, trials, list(by))
    done = joined[joined["outcome"].isin(("ok", "wrong")) & joined[column].notna()]
    rows = []
    for key, group in done.groupby(list(by), dropna=False, sort=True):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row["n"] = len(group)
        values = np.quantile(group[column].to_numpy(dtype=float), list(quantiles))
        row.update({f"p{100 * q:g}": float(v) for q, v in zip(quantiles, values, strict=True)})
        rows.append(row)
    return pd.DataFrame(rows, columns=[*by, "n", *[f"p{100 * q:g}" for q in quantiles]])


def varying(trials: pd.DataFrame, columns: Sequence[str] = CONFIGURATION) -> list[str]:
    """Return those columns, of the ones there are, in which the trials differ from each other."""
    return [name for name in columns if name in trials and trials[name].nunique(dropna=False) > 1]


def hit_rates(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the share of prompt tokens that were found in the prefix cache, for groups of `by`.

    Columns: those of `by`; n (requests), trials, prompt_tokens, cached_tokens, rate and its
    percentile bootstrap interval low to high, and `over`: what was drawn anew, `trials` where every
    group has at least 5 (they are independent), else `requests`. Rejected requests, and those of
    which either number is unknown, are left out.
    """
    by = list(by)
    joined = with_trials(requests, trials, by)
    known = joined["cached_tokens"].notna() & joined["prompt_tokens"].notna()
    joined = joined[known & (joined["outcome"] != "rejected")]
    joined = joined.assign(
        asked=joined["prompt_tokens"].map(len).astype(float),
        found=joined["cached_tokens"].astype(float),
    )
    groups = [(key, g) for key, g in joined.groupby(by, dropna=False) if g["asked"].sum()]
    over = "trials" if all(g["trial_id"].nunique() >= 5 for _, g in groups) else "requests"
    rng = np.random.default_rng(seed)
    rows = []
    for key, group in groups:
        pairs = group[["found", "asked"]]
        if over == "trials":
            pairs = pairs.groupby(group["trial_id"]).sum()
        low, high = _bootstrap_ratio(pairs.to_numpy(), confidence, resamples, rng)
        asked, found = int(group["asked"].sum()), int(group["found"].sum())
        row = {**dict(zip(by, key, strict=True)), "n": len(group)}
        row |= {"trials": group["trial_id"].nunique(), "prompt_tokens": asked}
        row |= {"cached_tokens": found, "rate": found / asked, "low": low, "high": high}
        rows.append(row | {"over": over})
    names = ["n", "trials", "prompt_tokens", "cached_tokens", "rate", "low", "high", "over"]
    return pd.DataFrame(rows, columns=[*by, *names])


def _bootstrap_ratio(
    pairs: npt.NDArray[np.float64], confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the percentile interval of sum(first) / sum(second) over rows drawn anew."""
    ratios = []
    for _ in range(resamples):
        found, asked = pairs[rng.integers(0, len(pairs), len(pairs))].sum(axis=0)
        ratios.append(found / asked if asked else math.nan)
    low, high = np.nanquantile(ratios, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
