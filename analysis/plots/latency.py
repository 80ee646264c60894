"""How long requests took, against concurrency."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.plots import style
from analysis.stats.rates import CONFIGURATION, latency_summary, varying, with_trials

_PANELS = (
    ("latency_s", "Whole answer", "latency (s)"),
    ("ttft_s", "First token", "time to first token (s)"),
)
_POINTS = 400


def latency(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw latency and time to first token of completed requests, in seconds, over concurrency.

    The marker is the median, the bar reaches up to the 95th percentile, the short line is the 99th;
    faint dots are single requests. The axis is logarithmic.
    """
    columns = list(dict.fromkeys(["release", "prefix_sharing", *varying(trials, CONFIGURATION)]))
    by = [*columns, "concurrency"]
    whole = latency_summary(requests, trials, by)
    if whole.empty:
        return style.nothing_to_draw("No request completed: there is no latency to draw.")
    series = style.all_series(whole, columns)
    joined = with_trials(requests, trials, by)
    joined = joined[joined["outcome"].isin(("ok", "wrong"))]
    figure = style.new_figure(8.6, 4.2)
    panels = figure.subplots(1, 2)
    for axes, (column, title, label) in zip(panels, _PANELS, strict=True):
        summary = latency_summary(requests, trials, by, column=column)
        style.dress(axes, title, "concurrent requests", label)
        if summary.empty:
            axes.set(xticks=[], yticks=[])
            axes.text(
                0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=style.GREY
            )
            continue
        for index, key in enumerate(series):
            _draw(
                axes,
                style.rows_of(summary, key),
                style.rows_of(joined, key),
                column,
                index,
                len(series),
            )
        style.concurrency_axis(axes, summary["concurrency"], summary["n"])
        _seconds_axis(axes)
    figure.suptitle("Latency of completed requests against concurrency", fontsize=style.TITLE + 1)
    handles = [
        Line2D([], [], color=_colour(i), marker=_marker(i), label=style.series_label(key))
        for i, key in enumerate(series)
    ]
    handles += [
        Line2D([], [], color=style.GREY, marker="o", label="median"),
        Line2D(
            [], [], color=style.GREY, linewidth=4, alpha=0.55, label="median to 95th percentile"
        ),
        Line2D(
            [],
            [],
            color=style.GREY,
            marker="_",
            markersize=10,
            linestyle="",
            label="99th percentile",
        ),
    ]
    style.legend_below(figure, handles, most=3)
    return figure


def _draw(
    axes: Axes, summary: pd.DataFrame, single: pd.DataFrame, column: str, index: int, count: int
) -> None:
    summary = summary.sort_values("concurrency")
    colour, aside = _colour(index), style.dodge(index, count)
    x = summary["concurrency"] * aside
    dots = single[single[column].notna()].head(_POINTS)
    axes.scatter(
        dots["concurrency"] * aside, dots[column], s=7, color=colour, alpha=0.18, linewidths=0
    )
    axes.vlines(x, summary["p50"], summary["p95"], color=colour, linewidth=4, alpha=0.55)
    axes.plot(x, summary["p99"], linestyle="", marker="_", markersize=10, color=colour)
    axes.plot(
        x,
        summary["p50"],
        color=colour,
        marker=_marker(index),
        markersize=6,
        linewidth=1.2,
        label=f"series {index}",
    )


def _seconds_axis(axes: Axes) -> None:
    """Use a log axis with plain numbers, more of them where the range is small."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _colour(index: int) -> str:
    return style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)]


def _marker(index: int) -> str:
    return style.SERIES_MARKERS[index % len(style.SERIES_MARKERS)]
