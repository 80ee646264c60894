"""Figures of notebook 09: one column a release."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.plots import style
from analysis.plots.outcomes import LOOKS
from analysis.runs.schema import OUTCOMES
from analysis.shortfin.releases import oldest_first
from analysis.stats.rates import failure_rates, outcome_counts
from analysis.studies.releases.estimates import CACHE, SETTING

_WIDTH = 9.0
_STACK = [name for name in OUTCOMES if name in style.OUTCOME_COLOURS]
_COSTS = {
    "leaked": "pages lost per request",
    "evicted": "pages evicted per request",
    "token_s": "seconds per token (median)",
}


def outcomes_figure(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the share of each outcome: a panel a cache, a group of bars a release.

    The bars of a group are the concurrencies, in ascending order.
    """
    counts = outcome_counts(requests, trials, SETTING)
    if counts.empty:
        return style.nothing_to_draw("No request was recorded.")
    keys = style.all_series(counts, CACHE)
    releases, levels = oldest_first(counts["release"]), sorted(set(counts["concurrency"]))
    figure = style.new_figure(_WIDTH, 1.1 + 2.3 * len(keys))
    panels = figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0]
    for axes, key in zip(panels, keys, strict=True):
        rows = style.rows_of(counts, key).set_index(["release", "concurrency"])
        for place, release in enumerate(releases):
            for number, level in enumerate(levels):
                if (release, level) in rows.index:
                    x = place + (number - (len(levels) - 1) / 2) * 0.8 / len(levels)
                    _bar(axes, x, 0.72 / len(levels), rows.loc[(release, level)], str(level))
        style.dress(axes, style.series_label(key), "", "share of requests")
        style.percent_axis(axes)
        axes.set_ylim(0, 1.12)
        _release_axis(axes, releases)
    panels[-1].set_xlabel(
        "release; bars: " + ", ".join(map(str, levels)) + " concurrent requests",
        fontsize=style.TEXT,
    )
    figure.suptitle("Outcomes of all requests on each release", fontsize=style.TITLE + 1)
    seen = [name for name in _STACK if counts[name].sum()]
    handles = [Patch(label=style.words(name.replace("_", " ")), **LOOKS[name]) for name in seen]
    style.legend_below(figure, handles, most=4)
    return figure


def causes_figure(found: pd.DataFrame) -> Figure:
    """Draw in which share of the engines of each release a cause was found; `causes` made it."""
    if found.empty:
        return style.nothing_to_draw("No rule found anything.")
    releases = oldest_first(found["release"])
    order = found.groupby(["rule", "cause"], as_index=False).agg(
        wrong=("wrong_data", "max"), total=("found", "sum")
    )
    order = order.sort_values(["wrong", "total"], ascending=True)
    names = [f"{rule} ({cause})" for rule, cause in zip(order["rule"], order["cause"], strict=True)]
    places = {name: number for number, name in enumerate(names)}
    figure = style.new_figure(_WIDTH, 1.2 + 0.27 * len(names))
    axes = figure.subplots()
    for row in found[found["found"] > 0].to_dict("records"):
        colour = style.VERMILLION if row["wrong_data"] else style.BLUE
        x, y = releases.index(row["release"]), places[f"{row['rule']} ({row['cause']})"]
        size = 14 + 150 * row["found"] / row["engines"]
        axes.scatter(x, y, s=size, color=colour, marker="o" if row["wrong_data"] else "s")
    style.dress(axes, "Causes that the sanitizer found", "release", "")
    axes.set_yticks(range(len(names)), names, fontsize=style.SMALL)
    axes.set_ylim(-0.7, len(names) - 0.3)
    _release_axis(axes, releases)
    looks: dict[str, Any] = {"linestyle": "", "markersize": 8}
    handles = [
        Line2D([], [], marker="o", color=style.VERMILLION, label="wrong data was read", **looks),
        Line2D([], [], marker="s", color=style.BLUE, label="at risk", **looks),
        Line2D([], [], marker="o", color=style.GREY, linestyle="", markersize=4,
               label="small: few of the engines; large: all"),
    ]  # fmt: skip
    style.legend_below(figure, handles, most=3)
    return figure


def demonstrations_figure(found: pd.DataFrame) -> Figure:
    """Draw in which releases a demonstration showed its cause; `demonstrated` made the frame."""
    if found.empty:
        return style.nothing_to_draw("No demonstration was run.")
    releases, names = oldest_first(found["release"]), list(dict.fromkeys(found["name"]))[::-1]
    labels = found.drop_duplicates("name").set_index("name")
    figure = style.new_figure(_WIDTH, 1.4 + 0.36 * len(names))
    axes = figure.subplots()
    for row in found.to_dict("records"):
        place = releases.index(row["release"]), names.index(row["name"])
        if not row["found"]:
            if row["fits"]:
                axes.scatter(*place, s=24, facecolor="none", edgecolor=style.GREY, marker="o")
        elif not row["pairs"]:
            axes.scatter(*place, s=24, color=style.GREY, marker="x", linewidth=1)
        else:
            removed = not row["after"]
            axes.scatter(
                *place, s=20 + 90 * row["found"] / row["engines"], marker="o" if removed else "D",
                color=style.VERMILLION if removed else style.ORANGE,
            )  # fmt: skip
    style.dress(axes, "Findings of the demonstrations on each release", "release", "")
    axes.set_yticks(
        range(len(names)),
        [f"{labels.loc[name, 'finding']}\n{labels.loc[name, 'treatment']}" for name in names],
        fontsize=style.LEAST,
    )
    axes.set_ylim(-0.7, len(names) - 0.3)
    _release_axis(axes, releases)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("found, in no engine with the treatment", {"marker": "o", "color": style.VERMILLION}),
        ("found, also with the treatment", {"marker": "D", "color": style.ORANGE}),
        ("not found", {"marker": "o", "color": style.GREY, "markerfacecolor": "none"}),
        ("found, treatment does not apply", {"marker": "x", "color": style.GREY}),
        ("small: few of the engines; large: all",
         {"marker": "o", "color": style.VERMILLION, "markersize": 4}),
    ]  # fmt: skip
    handles = [
        Line2D([], [], label=label, **{"linestyle": "", "markersize": 7, **look})
        for label, look in ways
    ]
    style.legend_below(figure, handles, most=2)
    return figure


def costs_figure(settings: pd.DataFrame) -> Figure:
    """Draw lost pages, evictions and time per token of each release; `by_setting` made it.

    Each marker is one setting; a cache has one colour, with its concurrencies from left to right.
    """
    if settings.empty:
        return style.nothing_to_draw("No request was recorded.")
    releases, levels = oldest_first(settings["release"]), sorted(set(settings["concurrency"]))
    keys = style.all_series(settings, CACHE)
    figure = style.new_figure(_WIDTH, 7.4)
    panels = figure.subplots(len(_COSTS), 1, sharex=True)
    places = len(levels) * len(keys)
    for axes, (column, title) in zip(panels, _COSTS.items(), strict=True):
        for number, key in enumerate(keys):
            rows = style.rows_of(settings, key).dropna(subset=[column])
            nth = rows["concurrency"].map(levels.index) * len(keys) + number
            x = rows["release"].map(releases.index) + 0.8 * ((nth + 0.5) / places - 0.5)
            axes.plot(
                x,
                rows[column],
                linestyle="",
                marker=style.marker(number),
                color=style.colour(number),
                markersize=4.5,
                label=style.series_label(key),
                clip_on=False,
            )
        style.dress(axes, title, "", title.split(" (")[0])
        _release_axis(axes, releases)
        if column == "token_s":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    panels[-1].set_xlabel(
        "release; from left to right " + ", ".join(map(str, levels)) + " concurrent requests",
        fontsize=style.TEXT,
    )
    figure.suptitle("Lost and evicted pages, and time per token", fontsize=style.TITLE + 1)
    style.legend_below(figure, panels[0].get_legend_handles_labels()[0], most=2)
    return figure  # fmt: skip


def outside_figure(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the failure rate of the engine in process beside that of the release's own server."""
    by = ["release", "prefix_sharing", "target"]
    rates = failure_rates(requests, trials, by).dropna(subset=["rate"])
    if rates.empty:
        return style.nothing_to_draw("No request was accepted.")
    releases, keys = oldest_first(rates["release"]), style.all_series(rates, ["prefix_sharing"])
    targets = sorted(set(rates["target"]))
    figure = style.new_figure(_WIDTH, 1.1 + 2.2 * len(keys))
    panels = figure.subplots(len(keys), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, key in zip(panels, keys, strict=True):
        for number, target in enumerate(targets):
            rows = style.rows_of(rates, {**key, "target": target}).reset_index(drop=True)
            x = rows["release"].map(releases.index) + (number - (len(targets) - 1) / 2) * 0.24
            axes.errorbar(
                x,
                rows["rate"],
                yerr=style.distances(rows, "rate", "low", "high"),
                fmt=style.marker(number),
                color=style.colour(number),
                capsize=4,
                label="in process" if target == "engine" else "over HTTP",
            )
        style.dress(axes, style.series_label(key), "", "failed, of accepted")
        style.percent_axis(axes)
        axes.set_ylim(bottom=0)
        _release_axis(axes, releases)
    panels[-1].set_xlabel("release", fontsize=style.TEXT)
    how = "over engines" if rates["by_engine"].all() else "by request where engines are few"
    figure.suptitle(f"In process and from outside (95% intervals, {how})",
                    fontsize=style.TITLE + 1)  # fmt: skip
    style.legend_below(figure, panels[0].get_legend_handles_labels()[0], most=2)
    return figure  # fmt: skip


def _bar(axes: Axes, x: float, width: float, counts: pd.Series[Any], label: str) -> None:
    total, bottom = float(counts[_STACK].sum()), 0.0
    for name in _STACK:
        if counts[name]:
            axes.bar(x, counts[name] / total, bottom=bottom, width=width, **LOOKS[name])
            bottom += counts[name] / total
    axes.text(x, 1.02, label, ha="center", va="bottom", fontsize=style.LEAST, color=style.GREY)


def _release_axis(axes: Axes, releases: list[str]) -> None:
    axes.set_xticks(np.arange(len(releases)), releases)
    axes.set_xlim(-0.6, len(releases) - 0.4)
