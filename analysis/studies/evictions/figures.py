"""Failure rate against the pages evicted while a request was served, one panel a stratum."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.stats.dose_response import (
    EvictionFit,
    configurations,
    eviction_fit,
    eviction_rates,
    evictions_contrast,
    strata_of,
)

_WIDTH, _HEIGHT = 4.2, 2.3
"""Of a panel, in inches."""
_HEADING = 0.55
_LINE = 56


def evictions_figure(
    requests: pd.DataFrame, trials: pd.DataFrame, title: str | None = None
) -> Figure:
    """Draw the failure rate by number of evictions: bins with 95% intervals, and a fit.

    One panel for each stratum within which the answer compares requests: a row for each number of
    pages (and workload), a column for each offered concurrency. The heading of each release and
    prefix sharing (and device) gives the common odds ratio of its panels; a configuration without
    evictions has no panels. The curve is a logistic regression with its 95% band; the panel states
    why there is none. Rejected requests are left out.
    """
    columns, equal = configurations(trials), strata_of(trials)
    rates = eviction_rates(requests, trials, [*columns, *equal])
    if rates.empty:
        return style.nothing_to_draw("Of no accepted request the evictions are known.")
    keys = style.all_series(rates, columns)
    grids = [_grid(style.rows_of(rates, key), equal) for key in keys]
    wide = max([2, *(len(grid[0]) for grid in grids if grid)])
    headings = [
        f"{style.series_label(key)}:\n{_common(requests, style.rows_of(trials, key))}"
        for key in keys
    ]
    if not any(grids):
        return style.nothing_to_draw("\n".join(headings))
    heights = [_HEADING + _HEIGHT * len(grid) for grid in grids]
    figure = style.new_figure(_WIDTH * wide, sum(heights) + _HEADING)
    fits = eviction_fit(requests, trials, [*columns, *equal])
    parts = figure.subfigures(len(keys), 1, height_ratios=heights, squeeze=False)[:, 0]
    for number, (part, key, grid) in enumerate(zip(parts, keys, grids, strict=True)):
        part.suptitle(headings[number], fontsize=style.TEXT, fontweight="bold", x=0.01, ha="left")
        if not grid:
            continue
        strata = [stratum for row in grid for stratum in row]
        panels = part.subplots(len(grid), len(grid[0]), squeeze=False, sharey=True)
        for axes, stratum in zip(panels.ravel(), strata, strict=True):
            here = [fit for fit in fits if fit.key == {**key, **stratum}]
            if not here:
                axes.set_axis_off()
                continue
            _panel(axes, here[0], style.rows_of(rates, here[0].key), stratum, number)
        for axes in panels[-1]:
            axes.set_xlabel("pages evicted during the request", fontsize=style.SMALL)
        for axes in panels[:, 0]:
            axes.set_ylabel("failed, of accepted", fontsize=style.SMALL)
    how = "over engines"
    if not rates["by_engine"].all():
        how += "; by request only, too narrow, where few"
    heading = title or f"Failed requests against evictions\n(95% intervals {how})"
    figure.suptitle(heading, fontsize=style.TITLE, x=0.01, ha="left")
    return figure


def _grid(rates: pd.DataFrame, equal: list[str]) -> list[list[dict[str, Any]]]:
    """Return the strata of one configuration in rows; [] if no page was evicted."""
    if not rates["last"].any():
        return []
    levels = sorted(set(rates["concurrency"]))
    others = style.all_series(rates, equal[1:]) if equal[1:] else [{}]
    return [[{"concurrency": level, **other} for level in levels] for other in others]


def _common(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return the common odds ratio of the strata of one configuration, in words."""
    own = requests[requests["trial_id"].isin(trials["trial_id"])]
    contrast = evictions_contrast(own, trials)
    if contrast is None:
        met = (own["evictions_during"].fillna(0) > 0).any()
        return "no request failed" if met else "no request met an eviction"
    if math.isnan(contrast.odds_ratio):
        return "no panel compares both"
    low, high = contrast.interval()
    text = f"odds of failing x {contrast.odds_ratio:.2f} with evictions, in all panels together"
    return text if math.isnan(low) else f"{text} ({low:.2f} to {high:.2f})"


def _panel(
    axes: Axes, fit: EvictionFit, rates: pd.DataFrame, stratum: dict[str, Any], number: int
) -> None:
    colour = style.colour(number)
    rows = rates.reset_index(drop=True)
    around = style.distances(rows, "rate", "low", "high")
    looks: dict[str, Any] = {"markersize": 6, "elinewidth": 1.6, "capsize": 4}
    axes.errorbar(
        rows.index, rows["rate"], yerr=around, fmt=style.marker(number), color=colour, **looks
    )
    if not fit.note:
        _curve(axes, fit, rows, colour)
    style.dress(axes, "", "", "")
    style.percent_axis(axes)
    axes.set_xticks(rows.index, [_bin_label(row) for row in _tuples(rows)])
    axes.set_xlim(-0.6, max(len(rows), 2) - 0.4)
    others = {name: value for name, value in stratum.items() if name != "concurrency"}
    name = ", ".join([f"offered {stratum['concurrency']} at once", style.series_label(others)])
    heading = f"{name.strip(', ')}\n{textwrap.fill(_fit_label(fit), _LINE)}"
    axes.set_title(heading, fontsize=style.SMALL, loc="left")


def _curve(axes: Axes, fit: EvictionFit, rows: pd.DataFrame, colour: str) -> None:
    """Draw the fit over the bins; within a bin the curve runs over all numbers that it spans."""
    places, numbers = [], []
    for place, row in enumerate(_tuples(rows)):
        span = np.linspace(row.first, row.last, 9)
        numbers.append(span)
        places.append(place + (np.linspace(-0.3, 0.3, 9) if row.last > row.first else span * 0))
    x, evicted = np.concatenate(places), np.concatenate(numbers)
    middle, low, high = fit.curve(evicted)
    axes.plot(x, middle, color=colour, linewidth=1.4)
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _bin_label(row: Any) -> str:
    numbers = str(row.first) if row.first == row.last else f"{row.first} to {row.last}"
    return f"{numbers}\nn = {row.n}"


def _fit_label(fit: EvictionFit) -> str:
    if fit.note:
        return f"no fit: {fit.note}"
    return f"odds of failing x {fit.odds_ratio:.2f} a page ({fit.low:.2f} to {fit.high:.2f})"


def _tuples(rows: pd.DataFrame) -> list[Any]:
    return list(rows.itertuples())
