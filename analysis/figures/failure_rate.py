"""Failure rate against concurrency."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.stats import CONFIGURATION, failure_rates, varying


def failure_rate(requests: pd.DataFrame, cells: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the share of requests that failed against concurrency, with 95% Wilson intervals.

    One line for each release and prefix sharing, and for whatever else differs between the cells.
    Rejected requests are left out of the rate; the title says so where there are any.
    """
    columns = list(dict.fromkeys(["release", "prefix_sharing", *varying(cells, CONFIGURATION)]))
    rates = failure_rates(requests, cells, [*columns, "concurrency"])
    # Where none was accepted there is no rate.
    drawn = rates[rates["rate"].notna()]
    if drawn.empty:
        return style.nothing_to_draw("No request was accepted: there is no failure rate to draw.")
    figure = style.new_figure(7.6, 4.2)
    axes = figure.add_subplot()
    series = style.all_series(drawn, columns)
    for index, key in enumerate(series):
        rows = style.rows_of(drawn, key).sort_values("concurrency")
        axes.errorbar(
            rows["concurrency"] * style.dodge(index, len(series)),
            rows["rate"],
            yerr=[
                (rows["rate"] - rows["low"]).clip(lower=0),
                (rows["high"] - rows["rate"]).clip(lower=0),
            ],
            color=style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)],
            marker=style.SERIES_MARKERS[index % len(style.SERIES_MARKERS)],
            markersize=6.5,
            linewidth=1.3,
            elinewidth=1.6,
            capsize=4,
            label=style.series_label(key),
        )
    accepted = drawn["n"] - drawn["rejected"]
    style.concurrency_axis(axes, drawn["concurrency"], accepted)
    style.percent_axis(axes)
    heading = title or "Failed requests against concurrency"
    style.dress(axes, heading, "concurrent requests", "failed, of accepted (95% Wilson interval)")
    notes = ["n: accepted requests"]
    if int(rates["rejected"].sum()):
        notes.append(f"{int(rates['rejected'].sum())} rejected requests are not counted")
    axes.set_xlabel(f"concurrent requests ({'; '.join(notes)})", fontsize=style.TEXT)
    figure.legend(
        loc="outside lower center", ncols=min(2, len(series)), fontsize=style.SMALL, frameon=False
    )
    return figure
