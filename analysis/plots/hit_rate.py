"""Hit rate of the prefix cache, and latency, against concurrency."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.stats.configurations import labelled, series_columns
from analysis.stats.rates import hit_rates, latency_summary


def hit_rate(requests: pd.DataFrame, trials: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the share of prompt tokens found cached, and the median latency, side by side.

    The share has a 95% bootstrap interval over trials, or over requests where there are fewer than
    5 trials; latency has bars from its median to its 95th percentile, over completed requests.
    """
    trials = labelled(trials)
    columns = series_columns(trials)
    by = [*columns, "concurrency"]
    hits = hit_rates(requests, trials, by)
    times = latency_summary(requests, trials, by)
    if hits.empty:
        return style.nothing_to_draw("No request was looked up in a prefix cache.")
    series = style.all_series(pd.concat([hits, times])[columns], columns)
    figure = style.new_figure(9.6, 4.3 + 0.2 * len(series))
    left, right = figure.subplots(1, 2)
    for number, key in enumerate(series):
        place = number, len(series), style.series_label(key)
        if len(rows := style.rows_of(hits, key)):
            style.interval_line(left, rows, *place)
        if len(rows := style.rows_of(times, key)):
            style.interval_line(right, rows, *place, y="p50", low="p50", high="p95")
    style.concurrency_axis(left, hits["concurrency"], hits["n"])
    style.percent_axis(left)
    y_label = f"share of prompt tokens\n(95% bootstrap over {hits['over'].iloc[0]})"
    style.dress(left, "Prompt tokens found cached", "concurrent requests", y_label)
    if len(times):
        style.concurrency_axis(right, times["concurrency"], times["n"])
    right.set_ylim(bottom=0)
    style.dress(right, "Latency", "concurrent requests", "median, up to 95th percentile (s)")
    style.legend_below(figure, right.get_legend_handles_labels()[0], most=2)
    figure.suptitle(title or "Prefix cache: hits and latency", fontsize=style.TITLE + 1)
    return figure
