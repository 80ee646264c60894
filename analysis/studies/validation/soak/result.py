"""What stress came to: a row an iteration, trends with intervals, and both in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats as scipy_stats

from analysis.runs.tables import RequestCounts
from analysis.stats.rates import wilson

COLUMNS = (
    "level", "iteration", "t_s", "seconds", "requests", "failed", "rejected", "retries",
    "latency_p50", "latency_max", "rss_bytes", "free", "cached", "lost",
)  # fmt: skip
TRENDS = {"rss_bytes": "resident memory", "lost": "lost pages", "latency_p50": "median latency"}
_WARM_UP = 0.25
"""Share of the iterations in which an engine still fills its own caches."""
_LEAST = 5
"""Iterations that a trend takes."""
_MIB = 2**20


@dataclass(frozen=True)
class Stress:
    """One release with one set of treatments under stress."""

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    budget_s: float
    frame: pd.DataFrame
    """A row an iteration: level, iteration (from 0), t_s (its end, since the engine was ready),
    seconds (that it took), requests, failed, rejected, retries (sent again), latency_p50 and
    latency_max (s, of answered ones), rss_bytes, and with nobody served pages free, cached and lost
    (neither)."""
    endings: Mapping[int, str | None]
    """By level, why it ended before its time; None if it did not."""

    @property
    def name(self) -> str:
        """Its setting in words."""
        names = " + ".join(self.treatments) or "no treatment"
        return f"shortfin {self.release}, prefix sharing {self.prefix_sharing}, {names}"

    def trends(self, confidence: float = 0.95) -> pd.DataFrame:
        """Return the change of memory, lost pages and latency per iteration, for each level.

        Columns: level, measure (a column of `frame`), n (iterations behind it), slope (per
        iteration) and its interval low to high; NaN with fewer than 5 iterations. The first quarter
        of the iterations is left out. Source: H. Theil (1950) and P. K. Sen (1968), the median
        slope of all pairs, which single jumps do not move.
        """
        rows = []
        for level, group in self.frame.groupby("level"):
            kept = group.sort_values("iteration")
            kept = kept.iloc[math.ceil(len(kept) * _WARM_UP) :]
            for measure in TRENDS:
                values = kept[kept[measure].notna()]
                row = {"level": level, "measure": measure, "n": len(values)}
                slope, low, high = math.nan, math.nan, math.nan
                if len(values) >= _LEAST:
                    fit = scipy_stats.theilslopes(
                        values[measure].astype(float), values["iteration"], confidence
                    )
                    slope, low, high = fit.slope, fit.low_slope, fit.high_slope
                rows.append({**row, "slope": slope, "low": low, "high": high})
        return pd.DataFrame(rows, columns=["level", "measure", "n", "slope", "low", "high"])

    @property
    def clause(self) -> str:
        """What failed, leaked and ended early on all levels together, as part of a sentence."""
        totals = (int(self.frame[name].sum()) for name in ("requests", "failed", "rejected"))
        counts = RequestCounts(*totals)
        lost = sum(int(own["lost"].max()) for _, own in self.frame.groupby("level"))
        early = sum(ending is not None for ending in self.endings.values())
        return (
            f"under stress with prefix sharing {self.prefix_sharing} {counts}, up to {lost} pages"
            f" lost, {early} of {len(self.endings)} engines ended early"
        )

    def in_words(self) -> str:
        """Return a line for every level as Markdown."""
        lines = [f"**{self.name}, under stress for {self.budget_s:g} s.**", ""]
        trends = self.trends()
        for level, ending in self.endings.items():
            own = self.frame[self.frame["level"] == level]
            slopes = trends[trends["level"] == level].set_index("measure")
            refused = own["rejected"].sum() + own["retries"].sum()
            offered = "offered " if refused else ""
            lines.append(f"- {level} {offered}at once: {_level(own, slopes, ending)}")
        return "\n".join(lines)


def _level(own: pd.DataFrame, slopes: pd.DataFrame, ending: str | None) -> str:
    ended = f" It ended early: {ending}" if ending else ""
    if own.empty:
        return f"no iteration was finished.{ended}"
    totals = (int(own[name].sum()) for name in ("requests", "failed", "rejected"))
    counts = RequestCounts(*totals)
    low, high = wilson(counts.failed, counts.accepted)
    text = f"{len(own)} iterations, {counts}"
    if counts.accepted:
        text += (
            f" (failure rate {100 * low:.2g}% to {100 * high:.2g}%, by request and too narrow: it"
            " is one engine)"
        )
    text += ";"
    if again := int(own["retries"].sum()):
        text += f" {again} times one was refused and sent again;"
    lost = int(own["lost"].iloc[-1])
    text += f" {lost} pages lost in the end, {own['rss_bytes'].max() / _MIB:.0f} MiB at most."
    return f"{text} {_slopes(slopes)}{ended}"


def _slopes(slopes: Any) -> str:
    if slopes.empty or slopes["slope"].isna().all():
        return "Too few iterations for a trend."
    scale = {"rss_bytes": (1 / _MIB, "MiB"), "lost": (1, "pages"), "latency_p50": (1e3, "ms")}
    parts = []
    for measure, word in TRENDS.items():
        row = slopes.loc[measure]
        slope, low, high = (float(row[name]) for name in ("slope", "low", "high"))
        if math.isnan(slope):
            continue
        factor, unit = scale[measure]
        interval = f"({_signed(factor * low)} to {_signed(factor * high)} {unit})"
        if low <= 0 <= high:
            # None was shown; the interval says how large one may be.
            parts.append(f"no trend of {word} {interval}")
        else:
            parts.append(f"{word} {_signed(factor * slope)} {unit} {interval}")
    return f"Per iteration: {'; '.join(parts)}."


def _signed(value: float) -> str:
    return f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2g}"
