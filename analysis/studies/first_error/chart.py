"""Which rules were broken, for how many requests, and whether wrong data was read by it."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from analysis.plots import style
from analysis.runs.tables import is_control
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA

_SETTING = ["release", "prefix_sharing", "treatments"]
_COLOURS = {WRONG_DATA: style.VERMILLION, AT_RISK: style.SKY}
_HATCHES = {WRONG_DATA: "", AT_RISK: "///"}
_TITLE_CHARACTERS = 75
_WORDS = {WRONG_DATA: "wrong data was read by it", AT_RISK: "the rule is at risk"}


def findings_chart(findings: pd.DataFrame, requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the share of requests that met each broken rule, a panel for each setting.

    Takes the tables of a sanitized run. Requests that were rejected are left out, as are controls.
    What concerns no request is a share of the trials, and says so.
    """
    trials = trials.assign(treatments=trials["treatments"].map(lambda names: tuple(names or ())))
    trials = trials[~trials["treatments"].map(is_control)]
    if trials.empty:
        return style.nothing_to_draw("No trial was checked.")
    panels = [
        (key, _bars(findings, requests, _trials_of(trials, key)))
        for key in style.all_series(trials, _SETTING)
    ]
    heights = [max(1, len(bars)) for _, bars in panels]
    titles = [
        textwrap.wrap(style.series_label(key), _TITLE_CHARACTERS, break_on_hyphens=False)
        for key, _ in panels
    ]
    height = sum(0.27 * rows + 0.42 + 0.2 * len(t) for rows, t in zip(heights, titles, strict=True))
    figure = style.new_figure(8.6, 0.9 + height)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, title, (_, bars) in zip(grid, titles, panels, strict=True):
        style.dress(axes, "\n".join(title), "", "")
        _draw(axes, bars)
    grid[-1].tick_params(axis="x", labelbottom=True)
    grid[-1].set_xlabel("share of accepted requests (of trials, where it says so)", fontsize=10)
    figure.legend(
        handles=[
            Patch(facecolor=_COLOURS[s], hatch=_HATCHES[s], edgecolor="white", label=_WORDS[s])
            for s in (WRONG_DATA, AT_RISK)
        ],
        loc="outside upper right",
        ncols=2,
        fontsize=style.SMALL,
        frameon=False,
    )
    figure.suptitle("Rules that were broken", fontsize=style.TITLE + 1, x=0.01, ha="left", va="top")
    return figure


class _Bar(NamedTuple):
    """How many requests, or trials, met a broken rule."""

    name: str
    severity: str
    met: int
    of: int
    unit: str


def _draw(axes: Axes, bars: list[_Bar]) -> None:
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#E3E3E3", linewidth=0.8)
    for place, bar in enumerate(bars):
        share = bar.met / bar.of
        colour, hatch = _COLOURS[bar.severity], _HATCHES[bar.severity]
        axes.barh(place, share, color=colour, height=0.72, edgecolor="white", hatch=hatch)
        text = f"{bar.met} of {bar.of}{bar.unit}"
        axes.text(share + 0.01, place, text, va="center", fontsize=8)
    if not bars:
        axes.text(0.01, 0, "no rule was broken", va="center", fontsize=style.SMALL)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(max(1, len(bars)) - 0.45, -0.55)
    axes.set_xlim(0, 1.14)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.tick_params(axis="x", labelbottom=False)


def _trials_of(trials: pd.DataFrame, key: dict[str, Any]) -> set[str]:
    same = [all(row[name] == key[name] for name in _SETTING) for row in trials.to_dict("records")]
    return set(trials.loc[same, "trial_id"])


def _bars(findings: pd.DataFrame, requests: pd.DataFrame, trials: set[str]) -> list[_Bar]:
    """Return a bar for each rule and cause: wrong data first, then by share."""
    asked = requests[requests["trial_id"].isin(trials) & (requests["outcome"] != "rejected")]
    found = findings[findings["trial_id"].isin(trials)]
    bars = []
    for (rule, cause), group in found.groupby(["rule", "cause"], sort=True):
        severity = WRONG_DATA if (group["severity"] == WRONG_DATA).any() else AT_RISK
        met = len(group.dropna(subset=["request_id"])[["trial_id", "request_id"]].drop_duplicates())
        name = f"{rule}: {cause}"
        if met:
            bars.append(_Bar(name, severity, met, max(len(asked), met), ""))
        else:
            bars.append(_Bar(name, severity, group["trial_id"].nunique(), len(trials), " trials"))
    return sorted(bars, key=lambda bar: (bar.severity != WRONG_DATA, -bar.met / bar.of, bar.name))
