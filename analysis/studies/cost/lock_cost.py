"""What a lock adds to an operation of the cache, against how many threads want it."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analysis.plots import style

_WAYS = (
    ("plain", "as the engine does it", style.BLACK, "o"),
    ("locked", "with one lock around it", style.BLUE, "s"),
)


def lock_cost_figure(costs: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the time of a call with and without a lock against threads, a panel an operation.

    `costs` is what `studies.cost.lock_costs` returns: medians over blocks, with their exact 95%
    intervals.
    """
    if costs.empty:
        return style.nothing_to_draw("No operation was timed.")
    names = list(dict.fromkeys(costs["operation"]))
    figure = style.new_figure(1.2 + 4.2 * len(names), 3.9)
    for number, (axes, name) in enumerate(
        zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)
    ):
        rows = costs[costs["operation"] == name].sort_values("threads")
        for index, (way, label, colour, marker) in enumerate(_WAYS):
            middle, low, high = (rows[f"{way}_{end}"] / 1e3 for end in ("ns", "low", "high"))
            axes.errorbar(
                rows["threads"] * style.dodge(index, len(_WAYS)),
                middle,
                yerr=[middle - low, high - middle],
                color=colour,
                marker=marker,
                markersize=6,
                linewidth=1.4,
                capsize=3,
                label=label if number == 0 else None,
            )
        levels = sorted(set(rows["threads"]))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(levels))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FixedFormatter([str(level) for level in levels]))
        axes.set_xlim(levels[0] / 1.45, levels[-1] * 1.45)
        axes.set_ylim(bottom=0)
        style.dress(axes, name, "threads that call at once", "time a call takes (us)")
    style.legend_below(figure, most=2)
    figure.suptitle(title or "What a lock adds to a call", fontsize=style.TITLE + 1)
    return figure
