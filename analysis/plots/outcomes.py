"""How requests ended, against concurrency."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.plots import style
from analysis.stats.checks import BEGINNING, BEGINS, EXACT, by_check
from analysis.stats.configurations import labelled, series_columns
from analysis.stats.rates import outcome_counts

# From the bottom up: failures, then right answers, then what was refused.
_DARK = ("engine_died", "wrong")
_LATER = "wrong_later"
STACK = ("wrong", _LATER, "empty", "error", "timeout", "engine_died", "ok", "cancelled", "rejected")
_WORDS = {
    "wrong": f"wrong within {BEGINNING} characters (both checks)",
    _LATER: "wrong later (only exact equality)",
    "empty": "empty (no tokens)",
    "engine_died": "engine died",
    "cancelled": "cancelled (the client left)",
    "rejected": "rejected (refused at once)",
}
_HATCHES = {_LATER: "\\\\", "rejected": "////", "timeout": "...", "error": "xxx"}
LOOKS: dict[str, dict[str, Any]] = {
    kind: {"facecolor": colour, "hatch": _HATCHES.get(kind), "edgecolor": style.GREY,
           "linewidth": 0.7}
    for kind, colour in {**style.OUTCOME_COLOURS, _LATER: style.WRONG_LATER}.items()
}  # fmt: skip


def outcomes(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the share of each outcome as stacked bars over concurrency, one panel a configuration.

    Numbers in the bars are requests; outcomes that never occurred have neither bar nor legend.
    Wrong answers that only exact equality detects have a bar of their own.
    """
    trials = labelled(trials)
    columns = series_columns(trials)
    by_both, counts = (
        outcome_counts(by_check(requests, check), trials, [*columns, "concurrency"])
        for check in (BEGINS, EXACT)
    )
    counts[_LATER] = (counts["wrong"] - by_both["wrong"]).clip(lower=0)
    counts["wrong"] -= counts[_LATER]
    if counts.empty:
        return style.nothing_to_draw("No request was recorded: there are no outcomes to draw.")
    series = style.all_series(counts, columns)
    levels = sorted(counts["concurrency"].unique())
    wide = min(2, len(series))
    high = math.ceil(len(series) / wide)
    width = 3.9 if wide > 1 else 6.4
    titles = [style.panel_title(key, width) for key in series]
    # A row of panels is as much higher as its longest title has further lines.
    rows = [titles[first : first + wide] for first in range(0, len(titles), wide)]
    further = sum(max(title.count("\n") for title in row) for row in rows)
    figure = style.new_figure(width * wide, 2.9 * high + 0.9 + 0.2 * further)
    panels = figure.subplots(high, wide, sharey=True, squeeze=False).ravel()
    for axes, key, title in zip(panels, series, titles, strict=False):
        _stack(axes, style.rows_of(counts, key).set_index("concurrency"), levels)
        style.dress(axes, title, "concurrent requests", "share of requests")
        axes.label_outer(remove_inner_ticks=True)
        axes.set_xlabel("concurrent requests", fontsize=style.TEXT)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(series) :]:
        axes.set_visible(False)
    figure.suptitle("Outcomes of all requests against concurrency", fontsize=style.TITLE + 1)
    seen = [kind for kind in reversed(STACK) if counts[kind].sum()]
    handles = [Patch(label=_WORDS.get(kind, kind), **LOOKS[kind]) for kind in seen]
    style.legend_below(figure, handles, most=3)
    return figure


def _stack(axes: Axes, rows: pd.DataFrame, levels: list[int]) -> None:
    """Stack one panel's bars, evenly spaced, with the number of requests where it fits."""
    labels = []
    for place, level in enumerate(levels):
        if level not in rows.index:
            labels.append(f"{level}\nnot run")
            continue
        numbers = {kind: int(rows[kind][level]) for kind in STACK if rows[kind][level]}
        total, bottom = sum(numbers.values()), 0.0
        labels.append(style.tick_label(level, [total]))
        for kind, number in numbers.items():
            share, look = number / total, LOOKS[kind]
            axes.bar(place, share, bottom=bottom, width=0.72, label=kind, **look)
            if share >= 0.06:
                # Hatching behind a number would make it unreadable.
                box = {"facecolor": look["facecolor"], "edgecolor": "none", "pad": 1.2}
                axes.text(place, bottom + share / 2, str(number), ha="center", va="center",
                          fontsize=style.SMALL, bbox=box,
                          color="white" if kind in _DARK else "black")  # fmt: skip
            bottom += share
    axes.set_xticks(range(len(levels)), labels)
    axes.set_xlim(-0.6, len(levels) - 0.4)
    style.percent_axis(axes)
    axes.set_ylim(0, 1.03)
