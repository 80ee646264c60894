"""Rates with intervals, exact tests, and how many requests a question needs.

A failed request is one that the engine took and did not answer right: wrong, empty, error, timeout
or lost. A rejected request was refused before it was worked on; it counts neither for nor against
the engine's answers, so rates are failures / (requests - rejected), and rejections are shown apart.

Requests of one cell share batches, and with them their fate. An interval that treats them as
independent is therefore somewhat too narrow; `failure_rates` also gives the share of cells in which
anything failed, whose interval rests on cells, which are independent: each has a fresh engine in a
fresh process.
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

from analysis.tables import FAILURES as FAILURES
from analysis.tables import OUTCOMES

CONFIGURATION = ("release", "device", "prefix_sharing", "page_count", "workload", "treatments")

Verdict = Literal["higher", "lower", "not enough requests to tell"]


@dataclass(frozen=True)
class Comparison:
    """Two groups compared: the two-sided p value of Fisher's exact test, and what it allows."""

    p_value: float
    verdict: Verdict


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of k out of n, as shares of 1; (nan, nan) for n = 0.

    Source: E. B. Wilson (1927), JASA 22:209, without continuity correction.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n, not {k} of {n}")
    if n == 0:
        return math.nan, math.nan
    interval = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Return the two-sided p value of Fisher's exact test of k1 of n1 against k2 of n2."""
    if not (0 <= k1 <= n1 and 0 <= k2 <= n2):
        raise ValueError(f"k must lie between 0 and n, not {k1} of {n1} and {k2} of {n2}")
    return float(scipy_stats.fisher_exact(np.array([[k1, n1 - k1], [k2, n2 - k2]])).pvalue)


def compare(k1: int, n1: int, k2: int, n2: int, alpha: float = 0.05) -> Comparison:
    """Say whether k1 of n1 is higher or lower than k2 of n2, or that it cannot be told.

    "not enough requests to tell" is the verdict whenever p >= `alpha`: no difference was shown, and
    none was ruled out.
    """
    p_value = fisher(k1, n1, k2, n2)
    if p_value >= alpha:
        return Comparison(p_value, "not enough requests to tell")
    return Comparison(p_value, "higher" if k1 * n2 > k2 * n1 else "lower")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for being several, in their order (Holm 1979, step-down)."""
    values = np.array(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]


def requests_to_see(rate: float, confidence: float = 0.95) -> int:
    """Return how many requests show a fault of this rate at least once with this probability."""
    if not 0 < rate < 1:
        raise ValueError(f"the rate must lie between 0 and 1, not {rate}")
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def requests_needed(p1: float, p2: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return about how many requests each of two groups needs to tell rates p1 and p2 apart.

    Normal approximation with Fleiss' continuity correction, which is what Fisher's exact test takes
    (Fleiss, Statistical Methods for Rates and Proportions, ch. 4). Raises ValueError if p1 = p2.
    """
    if not (0 <= p1 <= 1 and 0 <= p2 <= 1) or p1 == p2:
        raise ValueError(f"two different rates between 0 and 1 are needed, not {p1} and {p2}")
    difference, mean = abs(p1 - p2), (p1 + p2) / 2
    z_alpha, z_beta = scipy_stats.norm.ppf(1 - alpha / 2), scipy_stats.norm.ppf(power)
    spread = z_alpha * math.sqrt(2 * mean * (1 - mean))
    spread += z_beta * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    uncorrected = (spread / difference) ** 2
    return math.ceil(uncorrected / 4 * (1 + math.sqrt(1 + 4 / (uncorrected * difference))) ** 2)


def with_cells(
    requests: pd.DataFrame, cells: pd.DataFrame, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return requests with the columns of their cell beside them (all, or those named)."""
    missing = [name for name in columns or cells.columns if name not in requests.columns]
    beside = cells[list(dict.fromkeys(["cell_id", *missing]))]
    return requests.merge(beside, on="cell_id", how="left", validate="many_to_one")


def failure_rates(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return one row for every group of cells that agree in the columns `by`, in sorted order.

    Columns: those of `by`; n (requests), rejected, failures, rate = failures / (n - rejected) with
    its Wilson interval low to high (NaN if all were rejected), rejected_share; cells, cells_failed
    (with at least one failure), cells_ended_badly (status other than ok), and cell_rate with its
    Wilson interval cell_low to cell_high.
    """
    by = list(by)
    failed = requests["outcome"].isin(FAILURES)
    counted = pd.DataFrame(
        {
            "cell_id": requests["cell_id"],
            "n": 1,
            "rejected": (requests["outcome"] == "rejected").astype(int),
            "failures": failed.astype(int),
        }
    )
    per_cell = counted.groupby("cell_id", as_index=False).sum()
    per_cell = cells[
        ["cell_id", "status", *[c for c in by if c not in ("cell_id", "status")]]
    ].merge(per_cell, on="cell_id", how="left")
    per_cell[["n", "rejected", "failures"]] = (
        per_cell[["n", "rejected", "failures"]].fillna(0).astype(int)
    )
    per_cell["cells_ended_badly"] = (per_cell["status"] != "ok").astype(int)
    per_cell["cells_failed"] = (per_cell["failures"] > 0).astype(int)
    per_cell["cells"] = 1
    counts = ["n", "rejected", "failures", "cells", "cells_failed", "cells_ended_badly"]
    rows = []
    for key, group in per_cell.groupby(by, dropna=False, sort=True):
        total: dict[str, Any] = dict(zip(by, key, strict=True))
        total.update({name: int(group[name].sum()) for name in counts})
        rows.append({**total, **_rates(total, confidence)})
    order = [*by, "n", "rejected", "failures", "rate", "low", "high", "rejected_share"]
    order += ["cells", "cells_failed", "cells_ended_badly", "cell_rate", "cell_low", "cell_high"]
    return pd.DataFrame(rows, columns=order)


def _rates(total: Mapping[str, int], confidence: float) -> dict[str, float]:
    taken = total["n"] - total["rejected"]
    low, high = wilson(total["failures"], taken, confidence)
    cell_low, cell_high = wilson(total["cells_failed"], total["cells"], confidence)
    return {
        "rate": total["failures"] / taken if taken else math.nan,
        "low": low,
        "high": high,
        "rejected_share": total["rejected"] / total["n"] if total["n"] else math.nan,
        "cell_rate": total["cells_failed"] / total["cells"],
        "cell_low": cell_low,
        "cell_high": cell_high,
    }


def outcome_counts(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
) -> pd.DataFrame:
    """Return how many requests ended in each outcome: one row a group, one column an outcome."""
    joined = with_cells(requests, cells, list(by))
    counts = joined.groupby([*by, "outcome"], dropna=False).size().unstack("outcome", fill_value=0)
    return (
        counts.reindex(columns=list(OUTCOMES), fill_value=0).rename_axis(columns=None).reset_index()
    )


def latency_summary(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
    column: str = "latency_s",
    quantiles: Sequence[float] = (0.5, 0.95, 0.99),
) -> pd.DataFrame:
    """Return n and quantiles (columns p50, p95, p99; seconds) of a time of all completed requests.

    Completed are ok and wrong ones: a wrong answer took its time like a right one, while the time
    of a rejection or a timeout says nothing about how fast the engine answers.
    """
    joined = with_cells(requests, cells, list(by))
    done = joined[joined["outcome"].isin(("ok", "wrong")) & joined[column].notna()]
    rows = []
    for key, group in done.groupby(list(by), dropna=False, sort=True):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row["n"] = len(group)
        values = np.quantile(group[column].to_numpy(dtype=float), list(quantiles))
        row.update({f"p{100 * q:g}": float(v) for q, v in zip(quantiles, values, strict=True)})
        rows.append(row)
    return pd.DataFrame(rows, columns=[*by, "n", *[f"p{100 * q:g}" for q in quantiles]])


def varying(cells: pd.DataFrame, columns: Sequence[str] = CONFIGURATION) -> list[str]:
    """Return those columns, of the ones there are, in which the cells differ from each other."""
    return [name for name in columns if name in cells and cells[name].nunique(dropna=False) > 1]


def hit_rates(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the share of prompt tokens that were found in the prefix cache, for groups of `by`.

    Columns: those of `by`; n (requests), cells, prompt_tokens, cached_tokens, rate and its
    percentile bootstrap interval low to high, and `over`: what was drawn anew, `cells` where every
    group has at least 5 (they are independent), else `requests`. Rejected requests, and those of
    which either number is unknown, are left out.
    """
    by = list(by)
    joined = with_cells(requests, cells, by)
    known = joined["cached_tokens"].notna() & joined["prompt_tokens"].notna()
    joined = joined[known & (joined["outcome"] != "rejected")]
    joined = joined.assign(
        asked=joined["prompt_tokens"].map(len).astype(float),
        found=joined["cached_tokens"].astype(float),
    )
    groups = [(key, g) for key, g in joined.groupby(by, dropna=False) if g["asked"].sum()]
    over = "cells" if all(g["cell_id"].nunique() >= 5 for _, g in groups) else "requests"
    rng = np.random.default_rng(seed)
    rows = []
    for key, group in groups:
        pairs = group[["found", "asked"]]
        if over == "cells":
            pairs = pairs.groupby(group["cell_id"]).sum()
        low, high = _bootstrap_ratio(pairs.to_numpy(), confidence, resamples, rng)
        asked, found = int(group["asked"].sum()), int(group["found"].sum())
        row = {**dict(zip(by, key, strict=True)), "n": len(group)}
        row |= {"cells": group["cell_id"].nunique(), "prompt_tokens": asked}
        row |= {"cached_tokens": found, "rate": found / asked, "low": low, "high": high}
        rows.append(row | {"over": over})
    names = ["n", "cells", "prompt_tokens", "cached_tokens", "rate", "low", "high", "over"]
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
