"""Failure rate against the pages evicted while a request was served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.stats import varying
from analysis.stats_evictions import EvictionFit, eviction_fit, eviction_rates


def evictions(requests: pd.DataFrame, cells: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the failure rate by number of evictions: bins with 95% intervals, and a fit.

    One panel for each release and prefix sharing (and device). The curve is a logistic regression
    with its 95% band; where there is none, the panel says why. Rejected requests are left out.
    """
    columns = ["release", "prefix_sharing", *varying(cells, ["device"])]
    rates = eviction_rates(requests, cells, columns)
    if rates.empty:
        return style.nothing_to_draw("Of no accepted request the evictions are known.")
    fits = eviction_fit(requests, cells, columns)
    figure = style.new_figure(7.6, 1.1 + 2.9 * len(fits))
    panels = figure.subplots(len(fits), 1, squeeze=False)[:, 0]
    for number, (axes, fit) in enumerate(zip(panels, fits, strict=True)):
        colour = style.SERIES_COLOURS[number % len(style.SERIES_COLOURS)]
        rows = style.rows_of(rates, fit.key).reset_index(drop=True)
        bars = [rows["rate"] - rows["low"], rows["high"] - rows["rate"]]
        axes.errorbar(
            rows.index,
            rows["rate"],
            yerr=[bar.clip(lower=0) for bar in bars],
            fmt=style.SERIES_MARKERS[number % len(style.SERIES_MARKERS)],
            color=colour,
            markersize=6.5,
            elinewidth=1.6,
            capsize=4,
        )
        if not fit.note:
            _curve(axes, fit, rows, colour)
        style.percent_axis(axes)
        axes.set_xticks(rows.index, [_bin_label(row) for row in _tuples(rows)])
        axes.set_xlim(-0.6, max(len(rows), 2) - 0.4)
        heading = f"{style.series_label(fit.key)}: {_fit_label(fit)}"
        below = (
            "pages evicted during the request (n: accepted requests)"
            if number == len(fits) - 1
            else ""
        )
        style.dress(axes, heading, below, "failed, of accepted")
    figure.suptitle(
        title
        or "Failed requests against evictions (95% intervals over engines"
        + (")" if rates["by_engine"].all() else "; by request only, too narrow, where few)"),
        fontsize=style.TITLE + 1,
        x=0.01,
        ha="left",
    )
    return figure


def _curve(axes: Axes, fit: EvictionFit, rows: pd.DataFrame, colour: str) -> None:
    """Draw the fit over the bins, each of which stands for the numbers that it spans."""
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
        return f"no fit, for {fit.note}"
    return f"odds of failing x {fit.odds_ratio:.2f} a page ({fit.low:.2f} to {fit.high:.2f})"


def _tuples(rows: pd.DataFrame) -> list[Any]:
    return list(rows.itertuples())
