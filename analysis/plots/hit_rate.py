"""Hit rate of the prefix cache, and latency, against concurrency."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.stats.rates import CONFIGURATION, hit_rates, latency_summary, varying


def hit_rate(requests: pd.DataFrame, trials: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the share of prompt tokens found cached, and the median latency, side by side.

    The share has a 95% bootstrap interval over trials, or over requests where there are fewer than
    5 trials; latency has bars from its median to its 95th percentile, over completed requests.
    """
    columns = list(dict.fromkeys(["release", "prefix_sharing", *varying(trials, CONFIGURATION)]))
    by = [*columns, "concurrency"]
    hits = hit_rates(requests, trials, by)
    times = latency_summary(requests, trials, by)
    if hits.empty:
        return style.nothing_to_draw("No request looked anything up in a prefix cache.")
    figure = style.new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    series = style.all_series(pd.concat([hits, times])[columns], columns)
    for number, key in enumerate(series):
        _line(left, style.rows_of(hits, key), "rate", "low", "high", number, len(series), key)
        _line(right, style.rows_of(times, key), "p50", "p50", "p95", number, len(series), key)
    style.concurrency_axis(left, hits["concurrency"], hits["n"])
    style.percent_axis(left)
    over = str(hits["over"].iloc[0])
    style.dress(
        left,
        "Prompt tokens found cached",
        "concurrent requests",
        f"share of prompt tokens\n(95% bootstrap over {over})",
    )
    if len(times):
        style.concurrency_axis(right, times["concurrency"], times["n"])
    right.set_ylim(bottom=0)
    style.dress(right, "Latency", "concurrent requests", "median, up to 95th percentile (s)")
    style.legend_below(figure, right.get_legend_handles_labels()[0], most=2)
    figure.suptitle(title or "Prefix cache: hits and latency", fontsize=style.TITLE + 1)
    return figure


def _line(
    axes: Axes, rows: pd.DataFrame, y: str, low: str, high: str, number: int, count: int,
    key: dict[str, object],
) -> None:  # fmt: skip
    if rows.empty:
        return
    rows = rows.sort_values("concurrency")
    axes.errorbar(
        rows["concurrency"] * style.dodge(number, count),
        rows[y],
        yerr=[(rows[y] - rows[low]).clip(lower=0), (rows[high] - rows[y]).clip(lower=0)],
        color=style.SERIES_COLOURS[number % len(style.SERIES_COLOURS)],
        marker=style.SERIES_MARKERS[number % len(style.SERIES_MARKERS)],
        markersize=6,
        linewidth=1.3,
        elinewidth=1.4,
        capsize=3,
        label=style.series_label(key),
    )
