"""Invocations as a timeline: which requests flew together, in which row, prefill or decode."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.plots import style
from analysis.plots.page_lifetimes import short_name

_NAMED = 12


def invocations(
    invocations: pd.DataFrame,
    *,
    x: Literal["invocation", "time"] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a bar for each row of each invocation, coloured by its request; prefills are hatched.

    Rows without a request are padding and drawn as empty frames. `x` is the number of the
    invocation, or the time; if not given, the time where invocations fill a quarter of it and none
    overlap.
    """
    rows = invocations[invocations["t_s"].notna()].sort_values("seq")
    if rows.empty:
        return style.nothing_to_draw("No invocation has ended.")
    ends = rows["t_s"] + rows["duration_s"]
    busy = rows["duration_s"].sum() / max(ends.max() - rows["t_s"].min(), 1e-9)
    if x is None:
        overlap = (rows["t_s"].iloc[1:].to_numpy() < ends.iloc[:-1].to_numpy()).any()
        x = "time" if busy > 0.25 and len(rows) < 120 and not overlap else "invocation"
    requests = list(dict.fromkeys(r for ids in rows["request_ids"] for r in ids))
    colours = {
        name: style.SERIES_COLOURS[n % len(style.SERIES_COLOURS)] for n, name in enumerate(requests)
    }
    size = int(rows["batch_size"].fillna(rows["rows"]).max())
    figure = style.new_figure(9.6, 1.9 + 0.34 * max(size, 3))
    axes = figure.add_subplot()
    listed: list[Any] = list(rows.itertuples())
    for number, invocation in enumerate(listed):
        begin, width = (
            (invocation.t_s, invocation.duration_s) if x == "time" else (number + 0.06, 0.88)
        )
        for row in range(
            int(invocation.batch_size) if invocation.batch_size > 0 else invocation.rows
        ):
            if row < len(invocation.request_ids):
                look: dict[str, Any] = {
                    "facecolor": colours[invocation.request_ids[row]],
                    "edgecolor": "white",
                }
                look |= {"hatch": "////"} if invocation.phase == "prefill" else {}
            else:
                look = {"facecolor": "white", "edgecolor": "#BDBDBD"}
            axes.broken_barh([(begin, width)], (row - 0.4, 0.8), linewidth=0.5, **look)
    axes.set_ylim(size - 0.4, -0.6)
    axes.set_yticks(range(size))
    left, right = (rows["t_s"].min(), ends.max()) if x == "time" else (0, len(rows))
    axes.set_xlim(left - 0.01 * (right - left), right + 0.01 * (right - left))
    words = "time since the engine started (s)" if x == "time" else "number of the invocation"
    prefills = int((rows["phase"] == "prefill").sum())
    decodes = len(rows) - prefills
    heading = (
        title or f"Who flew together: {_many(prefills, 'prefill')}, {_many(decodes, 'decode')}"
    )
    style.dress(axes, heading, words, "row of the batch")
    axes.grid(visible=False)
    legend = [Patch(facecolor=colours[name], label=short_name(name)) for name in requests[:_NAMED]]
    if len(requests) > _NAMED:
        legend.append(Patch(color="white", label=f"and {len(requests) - _NAMED} more"))
    legend += [
        Patch(facecolor="#8C8C8C", edgecolor="white", hatch="////", label="prefill"),
        Patch(facecolor="#8C8C8C", label="decode"),
        Patch(facecolor="white", edgecolor="#BDBDBD", label="padding"),
    ]
    style.legend_below(figure, legend, most=7)
    return figure


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
