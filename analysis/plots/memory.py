"""Resident memory of the engine's process, and its page table, over time."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style

_MIB = 2**20


def memory(events: pd.DataFrame) -> Figure:
    """Draw resident memory and the bytes of the page table against time, from events `memory`."""
    rows = events[events["kind"] == "memory"]
    if rows.empty:
        return style.nothing_to_draw("No memory was recorded.")
    seconds = rows["t_s"].astype(float)
    figure = style.new_figure(7.6, 3.4)
    axes = figure.add_subplot()
    for column, colour, name in (
        ("value", style.BLUE, "resident"), ("page_table_bytes", style.ORANGE, "page table")
    ):  # fmt: skip
        values = rows[column].astype(float) / _MIB
        axes.plot(seconds, values, color=colour, linewidth=1.6, marker="." if len(rows) < 3 else "")
        axes.annotate(
            f"{name}: {values.iloc[-1]:,.1f} MiB", (seconds.iloc[-1], values.iloc[-1]),
            xytext=(-4, 5), textcoords="offset points", ha="right", fontsize=style.SMALL,
        )  # fmt: skip
    axes.set_ylim(0, axes.dataLim.y1 * 1.15)
    span = max(seconds.max() - seconds.min(), 0.1)
    axes.set_xlim(seconds.min() - 0.02 * span, seconds.max() + 0.02 * span)
    style.dress(axes, "Memory over time", "time since the engine started (s)", "MiB")
    return figure
