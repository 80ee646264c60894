"""How long requests took, against concurrency."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.plots import style
from analysis.stats.configurations import labelled, series_columns
from analysis.stats.rates import latency_summary, with_trials

_PANELS = (
    ("latency_s", "Whole answer", "latency (s)"),
    ("ttft_s", "First token", "time to first token (s)"),
)
_POINTS = 400
_BAR: dict[str, Any] = {"linewidth": 4, "alpha": 0.55}
_TAIL: dict[str, Any] = {"linestyle": "", "marker": "_", "markersize": 10}


def latency(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw latency and time to first token of completed requests, in seconds, over concurrency.

    The marker is the median, the bar reaches up to the 95th percentile, the short line is the 99th;
    faint dots are single requests. The axis is logarithmic.
    """
    trials = labelled(trials)
    columns = series_columns(trials)
    by = [*columns, "concurrency"]
    whole = latency_summary(requests, trials, by)
    if whole.empty:
        return style.nothing_to_draw("No request completed: there is no latency to draw.")
    series = style.all_series(whole, columns)
    joined = with_trials(requests, trials, by)
    joined = joined[joined["outcome"].isin(("ok", "wrong"))]
    figure = style.new_figure(8.6, 4.0 + 0.2 * len(series))
    for axes, (column, title, label) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        summary = latency_summary(requests, trials, by, column=column)
        style.dress(axes, title, "concurrent requests", label)
        if summary.empty:
            axes.set(xticks=[], yticks=[])
            middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center"}
            axes.text(0.5, 0.5, "not recorded", color=style.GREY, **middle)
            continue
        for index, key in enumerate(series):
            dots = style.rows_of(joined, key).dropna(subset=[column]).head(_POINTS)
            aside = style.dodge(index, len(series))
            axes.scatter(dots["concurrency"] * aside, dots[column], s=7, alpha=0.18, linewidths=0,
                         color=style.colour(index))  # fmt: skip
            _draw(axes, style.rows_of(summary, key).sort_values("concurrency"), index, aside)
        style.concurrency_axis(axes, summary["concurrency"], summary["n"])
        _seconds_axis(axes)
    figure.suptitle("Latency of completed requests against concurrency", fontsize=style.TITLE + 1)
    handles = [
        Line2D([], [], color=style.colour(i), marker=style.marker(i), label=style.series_label(key))
        for i, key in enumerate(series)
    ]
    for look, name in (
        ({"marker": "o"}, "median"), (_BAR, "median to 95th percentile"), (_TAIL, "99th percentile")
    ):  # fmt: skip
        handles.append(Line2D([], [], color=style.GREY, label=name, **look))
    style.legend_below(figure, handles, most=3)
    return figure


def _draw(axes: Axes, summary: pd.DataFrame, index: int, aside: float) -> None:
    x, colour = summary["concurrency"] * aside, style.colour(index)
    axes.vlines(x, summary["p50"], summary["p95"], color=colour, **_BAR)
    axes.plot(x, summary["p99"], color=colour, **_TAIL)
    axes.plot(x, summary["p50"], color=colour, marker=style.marker(index), markersize=6,
              linewidth=1.2)  # fmt: skip


def _seconds_axis(axes: Axes) -> None:
    """Use a log axis with plain numbers, more of them where the range is small."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
