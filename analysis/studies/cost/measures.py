"""What each trial of a sweep took: time, throughput, memory; and, where it was watched, hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.runs.tables import FAILURES
from analysis.studies.cost.arms import arm_name

ANSWERED = ("ok", "wrong")
"""Outcomes with an answer: a wrong one took its time like a right one."""
SETTING = ("release", "device", "prefix_sharing", "page_count", "workload")
"""What trials must agree in to be compared, beside concurrency and repeat."""


@dataclass(frozen=True)
class Metric:
    """One kind of cost, a column of `measure` or `watched`."""

    name: str
    title: str
    unit: str
    scale: Literal["ratio", "difference"] = "ratio"
    """Whether arms are compared by their quotient or by their difference."""
    more: Literal["worse", "better"] = "worse"
    """What it is if the treated engine has more of it."""


METRICS = (
    Metric("ttft_s", "time to first token", "s"),
    Metric("inter_token_s", "time between tokens", "s"),
    Metric("latency_s", "whole answer", "s"),
    Metric("tokens_per_s", "throughput", "tokens/s", more="better"),
    Metric("peak_rss_bytes", "resident memory", "bytes"),
)
WATCHED = (
    Metric("hit_rate", "prompt tokens found cached", "share", scale="difference", more="better"),
    Metric("peak_pages", "most pages in use", "pages"),
)
_COUNTS = ("asked", "rejected", "failed", "answered", "wrong")


def measure(requests: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row a trial: what it is, how its requests ended, and a column for each of METRICS.

    Times are medians, in seconds, over its answered requests, right or wrong; `inter_token_s` is
    (latency - time to first token) / (tokens - 1) of a request. `tokens_per_s` is the tokens of
    those answers over the time from the first one's sending to the last one's end.
    Where clients sent more than one request, the first of each only warms the engine up and is
    left out of all four. `comparable` tells whether the trial ended well, with nothing lost: every
    request that the engine took was answered. A request that fails early or late is no fast or slow
    answer, and leaves the others more room.
    """
    rows = []
    groups = dict(tuple(requests.groupby("trial_id")))
    for trial in trials.to_dict("records"):
        own = groups.get(trial["trial_id"], requests.iloc[:0])
        rows.append({**_about(trial), **_counts(trial, own), **_times(own),
                     "peak_rss_bytes": _number(trial["peak_rss_bytes"])})  # fmt: skip
    columns = [*_about_columns(), *_COUNTS, "comparable", *(m.name for m in METRICS)]
    return pd.DataFrame(rows, columns=columns)


def watched(requests: pd.DataFrame, trials: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Return one row a trial of a sweep whose events were recorded, with a column for WATCHED.

    `hit_rate` is the share of the accepted requests' prompt tokens that were found in the prefix
    cache, `peak_pages` the most pages that were out of the pool at once.
    """
    groups = dict(tuple(requests.groupby("trial_id")))
    free = events.dropna(subset=["free_pages"]).groupby("trial_id")["free_pages"].min()
    rows = []
    for trial in trials.to_dict("records"):
        own = groups.get(trial["trial_id"], requests.iloc[:0])
        least = free.get(trial["trial_id"])
        rows.append({**_about(trial), **_counts(trial, own), "hit_rate": _hit_rate(own),
                     "peak_pages": np.nan if least is None else trial["page_count"] - float(least)
                     })  # fmt: skip
    columns = [*_about_columns(), *_COUNTS, "comparable", *(m.name for m in WATCHED)]
    return pd.DataFrame(rows, columns=columns)


def _about_columns() -> list[str]:
    return [*SETTING, "concurrency", "repeat", "treatments", "arm", "trial_id"]


def _about(trial: dict[Any, Any]) -> dict[str, Any]:
    names = tuple(trial["treatments"] if trial["treatments"] is not None else ())
    about = {name: trial[name] for name in (*SETTING, "concurrency", "repeat", "trial_id")}
    arm = arm_name(names, trial["release"], trial["prefix_sharing"])
    return {**about, "treatments": names, "arm": arm}


def _counts(trial: dict[Any, Any], own: pd.DataFrame) -> dict[str, Any]:
    outcomes = own["outcome"]
    counts = {
        "asked": len(own),
        "rejected": int((outcomes == "rejected").sum()),
        "failed": int(outcomes.isin(set(FAILURES) - set(ANSWERED)).sum()),
        "answered": int(outcomes.isin(ANSWERED).sum()),
        "wrong": int((outcomes == "wrong").sum()),
    }
    well = trial["status"] == "ok" and not counts["failed"] and counts["answered"] > 0
    return {**counts, "comparable": well}


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
    asked = known["prompt_tokens"].map(_length).sum()
    return float(known["cached_tokens"].sum()) / float(asked) if asked else np.nan


def _length(tokens: Sequence[int] | None) -> int:
    return len(tokens) if isinstance(tokens, Sequence) else 0


def _number(value: Any) -> float:
    return np.nan if value is None or pd.isna(value) else float(value)
