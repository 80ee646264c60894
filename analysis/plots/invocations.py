"""Timeline of invocations: the requests of each batch, by row, prefill or decode."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.core.wording import counted
from analysis.plots import style

_PADDING: dict[str, Any] = {"facecolor": "white", "edgecolor": "#BDBDBD"}


def invocations(
    invocations: pd.DataFrame, *, x: Literal["invocation", "time"] | None = None
) -> Figure:
    """Draw a bar for each row of each invocation, coloured by its request; prefills are hatched.

    Rows without a request are padding and drawn as empty frames. `x` is the number of the
    invocation or the time. The default is the time if invocations fill a quarter of it and do not
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
    colours = style.request_colours(list(dict.fromkeys(rows["request_ids"].explode().dropna())))
    size = int(rows["batch_size"].fillna(rows["rows"]).max())
    figure = style.new_figure(9.6, 1.9 + 0.34 * max(size, 3))
    axes = figure.add_subplot()
    listed: list[Any] = list(rows.itertuples())
    for number, call in enumerate(listed):
        span = (call.t_s, call.duration_s) if x == "time" else (number + 0.06, 0.88)
        hatch = {"hatch": "////"} if call.phase == "prefill" else {}
        for row in range(int(call.batch_size) if call.batch_size > 0 else call.rows):
            look: dict[str, Any] = _PADDING
            if row < len(call.request_ids):
                look = {"facecolor": colours[call.request_ids[row]], "edgecolor": "white", **hatch}
            axes.broken_barh([span], (row - 0.4, 0.8), linewidth=0.5, **look)
    axes.set_ylim(size - 0.4, -0.6)
    axes.set_yticks(range(size))
    left, right = (rows["t_s"].min(), ends.max()) if x == "time" else (0, len(rows))
    axes.set_xlim(left - 0.01 * (right - left), right + 0.01 * (right - left))
    x_label = "time since the engine started (s)" if x == "time" else "number of the invocation"
    prefills = int((rows["phase"] == "prefill").sum())
    calls = f"{counted(prefills, 'prefill')}, {counted(len(rows) - prefills, 'decode')}"
    style.dress(axes, f"Requests of each batch: {calls}", x_label, "row of the batch")
    axes.grid(visible=False)
    legend = [
        *style.request_patches(colours),
        Patch(facecolor="#8C8C8C", edgecolor="white", hatch="////", label="prefill"),
        Patch(facecolor="#8C8C8C", label="decode"),
        Patch(**_PADDING, label="padding"),
    ]
    style.legend_below(figure, legend, most=7)
    return figure
