"""How requests ended, against concurrency."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.plots import style
from analysis.stats.rates import CONFIGURATION, outcome_counts, varying

# From the bottom up: failures, then right answers, then what was refused, set off by its hatching.
STACK = ("wrong", "empty", "error", "timeout", "engine_died", "ok", "rejected")
_WORDS = {
    "empty": "empty (no tokens)",
    "engine_died": "engine died",
    "rejected": "rejected (refused at once)",
}
_HATCHES = {"rejected": "////", "timeout": "...", "error": "xxx"}


def outcomes(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the share of each outcome as stacked bars over concurrency, one panel a configuration.

    Numbers in the bars are requests; outcomes that never occurred have neither bar nor legend.
    """
    columns = list(dict.fromkeys(["release", "prefix_sharing", *varying(trials, CONFIGURATION)]))
    counts = outcome_counts(requests, trials, [*columns, "concurrency"])
    if counts.empty:
        return style.nothing_to_draw("No request was recorded: there are no outcomes to draw.")
    series = style.all_series(counts, columns)
    levels = sorted(counts["concurrency"].unique())
    wide = min(2, len(series))
    high = math.ceil(len(series) / wide)
    width = 3.9 if wide > 1 else 6.4
    figure = style.new_figure(width * wide, 2.9 * high + 0.9)
    panels = figure.subplots(high, wide, sharey=True, squeeze=False).ravel()
    for axes, key in zip(panels, series, strict=False):
        rows = style.rows_of(counts, key).set_index("concurrency")
        _stack(axes, rows, levels)
        title = style.panel_title(key, width)
        style.dress(axes, title, "concurrent requests", "share of requests")
        axes.label_outer(remove_inner_ticks=True)
        axes.set_xlabel("concurrent requests", fontsize=style.TEXT)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(series) :]:
        axes.set_visible(False)
    figure.suptitle("Outcomes of all requests against concurrency", fontsize=style.TITLE + 1)
    seen = [kind for kind in STACK if counts[kind].sum()]
    style.legend_below(figure, [_patch(kind) for kind in reversed(seen)], most=4)
    return figure


def _stack(axes: Axes, rows: pd.DataFrame, levels: list[int]) -> None:
    """Stack one panel's bars, evenly spaced, with the number of requests in each that has room."""
    labels = []
    for place, level in enumerate(levels):
        if level not in rows.index:
            labels.append(f"{level}\nnot run")
            continue
        row = {kind: int(rows[kind][level]) for kind in STACK}
        total, bottom = sum(row.values()), 0.0
        labels.append(style.tick_label(level, [total]))
        for kind in STACK:
            number = row[kind]
            if not number:
                continue
            share = number / total
            axes.bar(
                place,
                share,
                bottom=bottom,
                width=0.72,
                color=style.OUTCOME_COLOURS[kind],
                hatch=_HATCHES.get(kind),
                edgecolor=style.GREY,
                linewidth=0.7,
                label=kind,
            )
            if share >= 0.06:
                axes.text(
                    place,
                    bottom + share / 2,
                    str(number),
                    ha="center",
                    va="center",
                    fontsize=style.SMALL,
                    color="white" if kind in ("engine_died", "wrong") else "black",
                    # Hatching behind a number would make it unreadable.
                    bbox={
                        "facecolor": style.OUTCOME_COLOURS[kind],
                        "edgecolor": "none",
                        "pad": 1.2,
                    },
                )
            bottom += share
    axes.set_xticks(range(len(levels)), labels)
    axes.set_xlim(-0.6, len(levels) - 0.4)
    style.percent_axis(axes)
    axes.set_ylim(0, 1.03)


def _patch(kind: str) -> Patch:
    return Patch(
        facecolor=style.OUTCOME_COLOURS[kind],
        hatch=_HATCHES.get(kind),
        edgecolor=style.GREY,
        linewidth=0.7,
        label=_WORDS.get(kind, kind),
    )
