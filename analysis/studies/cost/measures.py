"""Costs of each trial of a sweep: time, throughput and memory; hits where events were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.runs.schema import FAILURES
from analysis.runs.tables import arm_of
from analysis.treatments import TREATMENTS, fixes

UNTREATED, ALL, LOCK = "untreated", "all fixes", "lock-cache"
"""Names of arms; all others are named after their treatments."""
ANSWERED = ("ok", "wrong")
"""Outcomes with an answer: a wrong one takes its time, too."""
SETTING = ("release", "device", "prefix_sharing", "page_count", "workload")
"""Columns in which compared trials agree, besides concurrency and repeat."""


@dataclass(frozen=True)
class Metric:
    """One kind of cost, a column of `measure` or `measure_cache`."""

    name: str
    title: str
    unit: str
    scale: Literal["ratio", "difference"] = "ratio"
    """Whether arms are compared by their ratio or by their difference."""
    more: Literal["worse", "better"] = "worse"
    """Whether a larger value is worse or better."""


METRICS = (
    Metric("ttft_s", "time to first token", "s"),
    Metric("inter_token_s", "time between tokens", "s"),
    Metric("latency_s", "whole answer", "s"),
    Metric("tokens_per_s", "throughput", "tokens/s", more="better"),
    Metric("peak_rss_bytes", "resident memory", "bytes"),
)
CACHE_METRICS = (
    Metric("hit_rate", "prompt tokens found cached", "share", scale="difference", more="better"),
    Metric("peak_pages", "most pages in use", "pages"),
)
_ABOUT = (*SETTING, "concurrency", "repeat", "treatments", "arm", "trial_id")
_COUNTS = ("asked", "rejected", "failed", "answered", "wrong", "comparable")


def arm_name(treatments: Sequence[str] | None, release: str, prefix_sharing: str) -> str:
    """Return the name of an arm."""
    names = arm_of(treatments)
    if len(names) > 1 and set(names) == set(fixes(release, prefix_sharing)):
        return ALL
    return " + ".join(names) or UNTREATED


def rank(arm: str) -> tuple[int, str]:
    """Return the sort key of an arm: untreated, the lock, single fixes in order, all fixes."""
    names = [UNTREATED, LOCK, *(name for name in TREATMENTS if name != LOCK)]
    place = names.index(arm) if arm in names else len(names)
    return (place + 1 if arm == ALL else place), arm


def measure(requests: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a trial: its setting, counts of outcomes, and a column for each of METRICS.

    Times are medians, in seconds, over answered requests, right or wrong; `inter_token_s` is
    (latency - time to first token) / (tokens - 1) of a request. `tokens_per_s` is the tokens of
    those answers over the time from the first submission to the last end. The first request of a
    client warms the engine up and is left out of all four if the client sent more. `comparable` is
    whether the trial ended well and every accepted request was answered: a failed request is no
    fast or slow answer, and leaves more room to the others.
    """
    rows = []
    for about, trial, own in _trials(requests, trials):
        memory = trial["peak_rss_bytes"]
        memory = np.nan if memory is None or pd.isna(memory) else float(memory)
        rows.append({**about, **_times(own), "peak_rss_bytes": memory})
    return pd.DataFrame(rows, columns=[*_ABOUT, *_COUNTS, *(m.name for m in METRICS)])


def measure_cache(
    requests: pd.DataFrame, trials: pd.DataFrame, events: pd.DataFrame
) -> pd.DataFrame:
    """Return one row a trial with recorded events, with a column for each of CACHE_METRICS.

    `hit_rate` is the share of the accepted requests' prompt tokens that were found in the prefix
    cache, `peak_pages` the most pages out of the pool at once.
    """
    free = events.dropna(subset=["free_pages"]).groupby("trial_id")["free_pages"].min()
    rows = []
    for about, trial, own in _trials(requests, trials):
        least = free.get(trial["trial_id"])
        pages = np.nan if least is None else trial["page_count"] - float(least)
        rows.append({**about, "hit_rate": _hit_rate(own), "peak_pages": pages})
    return pd.DataFrame(rows, columns=[*_ABOUT, *_COUNTS, *(m.name for m in CACHE_METRICS)])


def _trials(
    requests: pd.DataFrame, trials: pd.DataFrame
) -> list[tuple[dict[str, Any], dict[Any, Any], pd.DataFrame]]:
    """Return for each trial its setting with the counts, its row, and its requests."""
    groups = dict(tuple(requests.groupby("trial_id")))
    rows = []
    for trial in trials.to_dict("records"):
        own = groups.get(trial["trial_id"], requests.iloc[:0])
        names = arm_of(trial["treatments"])
        arm = arm_name(names, trial["release"], trial["prefix_sharing"])
        about = {name: trial.get(name) for name in _ABOUT} | {"treatments": names, "arm": arm}
        rows.append(({**about, **_counts(trial, own["outcome"])}, trial, own))
    return rows


def _counts(trial: dict[Any, Any], outcomes: pd.Series[Any]) -> dict[str, Any]:
    failed = int(outcomes.isin(set(FAILURES) - set(ANSWERED)).sum())
    answered = int(outcomes.isin(ANSWERED).sum())
    return {
        "asked": len(outcomes),
        "rejected": int((outcomes == "rejected").sum()),
        "failed": failed,
        "answered": answered,
        "wrong": int((outcomes == "wrong").sum()),
        "comparable": trial["status"] == "ok" and not failed and answered > 0,
    }


def _times(own: pd.DataFrame) -> dict[str, float]:
    timed = own[own["outcome"].isin(ANSWERED) & own["latency_s"].notna()]
    if (timed["position"] > 0).any():
        timed = timed[timed["position"] > 0]
    if timed.empty:
        return dict.fromkeys(("ttft_s", "inter_token_s", "latency_s", "tokens_per_s"), np.nan)
    latency, first = (timed[name].astype(float) for name in ("latency_s", "ttft_s"))
    tokens = timed["tokens"].map(_length)
    between = (latency - first) / (tokens - 1).where(tokens > 1)
    sent = timed["submitted_s"].astype(float)
    seconds = float((sent + latency).max() - sent.min())
    return {
        "ttft_s": float(first.median()),
        "inter_token_s": float(between.median()),
        "latency_s": float(latency.median()),
        "tokens_per_s": float(tokens.sum()) / seconds if seconds > 0 else np.nan,
    }


def _hit_rate(own: pd.DataFrame) -> float:
    known = own[(own["outcome"] != "rejected") & own["cached_tokens"].notna()]
    tokens = known["prompt_tokens"].map(_length).sum()
    return float(known["cached_tokens"].sum()) / float(tokens) if tokens else np.nan


def _length(tokens: Sequence[int] | None) -> int:
    return len(tokens) if isinstance(tokens, Sequence) else 0
