"""Free, live, cached and leaked pages over time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots import style
from analysis.plots.style import STATE_COLOURS
from analysis.runs.schema import FAILURES
from analysis.snapshots.snapshot import STATES

_ORDER = ("leaked", "live", "cached", "free")


def pages_over_time(
    snapshots: pd.DataFrame,
    requests: pd.DataFrame | None = None,
    events: pd.DataFrame | None = None,
    title: str | None = None,
) -> Figure:
    """Draw how many pages were in which state, as stacked steps from snapshot to snapshot.

    Failed `requests` are marked where they ended; evictions and shortages from `events` are ticks,
    the engine's death is a line. All rows must be of one engine.
    """
    rows = snapshots[snapshots["t_s"].notna()].sort_values("seq")
    if rows.empty:
        return style.nothing_to_draw("No snapshot was taken.")
    figure = style.new_figure(8.4, 3.8)
    axes = figure.add_subplot()
    seconds = rows["t_s"].to_numpy(float)
    # The last state is drawn a little further, or its step could not be seen.
    seconds = np.append(seconds, seconds[-1] + max(0.03 * (seconds[-1] - seconds[0]), 0.005))
    rows = pd.concat([rows, rows.tail(1)])
    counts = [rows[state].to_numpy(float) for state in _ORDER]
    axes.stackplot(
        seconds, counts, step="post", colors=[STATE_COLOURS[s] for s in _ORDER],
        labels=[f"{s}, at the end {int(rows[s].iloc[-1])}" for s in _ORDER], linewidth=0,
    )  # fmt: skip
    total = int(rows[list(STATES)].iloc[0].sum())
    axes.set_ylim(0, total * 1.12)
    axes.set_xlim(seconds[0], seconds[-1])
    _marks(axes, total, requests, events)
    style.dress(axes, title or "Pages over time", "time since the engine started (s)", "pages")
    style.legend_below(figure, most=4)
    return figure


def _marks(
    axes: Axes, total: int, requests: pd.DataFrame | None, events: pd.DataFrame | None
) -> None:
    """Mark failures, evictions, shortages and the engine's death above the areas."""
    if requests is not None:
        failed = requests[requests["outcome"].isin(FAILURES)]
        ends = (failed["submitted_s"] + failed["latency_s"]).dropna()
        if len(ends):
            _row(axes, ends, total * 1.09, "X", style.BLACK, f"{len(ends)} requests failed")
    if events is None:
        return
    for kind, marker, colour, height, words in (
        ("evict", "v", style.PURPLE, 1.06, "evictions"),
        ("alloc_failed", "s", style.ORANGE, 1.03, "shortages"),
    ):
        times = events.loc[events["kind"] == kind, "t_s"]
        if len(times):
            _row(axes, times, total * height, marker, colour, f"{len(times)} {words}")
    for time in events.loc[events["kind"] == "worker_died", "t_s"]:
        line = Line2D([time, time], [0, total * 1.12], color=style.BLACK, linestyle="--")
        line.set_label("the engine died")
        axes.add_line(line)


def _row(
    axes: Axes, times: pd.Series[float], height: float, marker: str, colour: str, label: str
) -> None:
    axes.plot(
        times, np.full(len(times), height), marker, color=colour, markersize=4.5, label=label,
        clip_on=False,
    )  # fmt: skip
