"""An engine under stress: latency, memory and lost pages over time, a line a level."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.plots import style

_MIB, _TITLE = 2**20, 78


def stress_figure(frame: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the iterations of stress: the table `frame` of `soak.Stress`.

    Above, the median and the longest latency of each iteration; then resident memory, and pages
    that are neither free nor cached with nobody served. An iteration with a failed request is
    marked by a cross. Levels follow each other, each on a fresh engine; time is since it was ready.
    """
    if frame.empty:
        return style.nothing_to_draw("No iteration was finished.")
    figure = style.new_figure(8.2, 7.0)
    panels = figure.subplots(3, 1, sharex=True)
    levels = sorted(frame["level"].unique())
    longest = frame["latency_max"].max() if frame["latency_max"].notna().any() else 1.0
    for number, level in enumerate(levels):
        colour = style.SERIES_COLOURS[number % len(style.SERIES_COLOURS)]
        own = frame[frame["level"] == level].sort_values("iteration")
        look = {
            "color": colour,
            "linewidth": 1.2,
            "marker": style.SERIES_MARKERS[number % len(style.SERIES_MARKERS)],
            "markersize": 4,
        }
        latency, memory, lost = panels
        latency.plot(own["t_s"], own["latency_p50"], label=f"{level} at once", **look)
        latency.vlines(
            own["t_s"], own["latency_p50"], own["latency_max"], color=colour, linewidth=0.7
        )
        bad = own[own["failed"] > 0]
        # Where nothing was answered there is no latency: then the cross stands at the longest.
        height = bad["latency_max"].fillna(longest)
        latency.plot(bad["t_s"], height, "x", color=style.BLACK, markersize=7)
        memory.plot(own["t_s"], own["rss_bytes"] / _MIB, **look)
        lost.plot(own["t_s"], own["lost"], **look)
    latency.set_yscale("log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_minor_formatter(NullFormatter())
    latency.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    most = max(1.0, 1.08 * frame["lost"].max())
    lost.set_ylim(-0.06 * most, most)
    lost.yaxis.get_major_locator().set_params(integer=True)
    style.dress(latency, "Latency: median, and up to the longest", "", "seconds (log)")
    style.dress(memory, "Resident memory of the engine's process", "", "MiB")
    style.dress(
        lost,
        "Pages neither free nor cached with nobody served",
        "time since each level's engine was ready (s)",
        "pages",
    )
    handles, _ = latency.get_legend_handles_labels()
    if (frame["failed"] > 0).any():
        failed = Line2D(
            [], [], color=style.BLACK, marker="x", linestyle="", label="a request failed"
        )
        handles.append(failed)
    style.legend_below(figure, handles, most=len(handles))
    lines = textwrap.wrap(title or "Under stress", _TITLE, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), fontsize=style.TITLE + 1, x=0.01, ha="left")
    return figure
