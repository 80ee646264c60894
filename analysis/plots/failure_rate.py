"""Failure rate against concurrency."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.stats.rates import CONFIGURATION, failure_rates, per_trial, varying


def failure_rate(requests: pd.DataFrame, trials: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the share of requests that failed against concurrency, with 95% intervals over engines.

    One line for each release and prefix sharing, and for whatever else differs between the trials.
    Points stand at the concurrency that the engine ran: one that refuses requests works on fewer at
    once than it is offered, and all that it was offered beyond that is one point; the legend has
    the offered concurrencies. Rejected requests are left out of the rate; the label says so.
    """
    columns = list(dict.fromkeys(["release", "prefix_sharing", *varying(trials, CONFIGURATION)]))
    ran = per_trial(requests, trials)
    # An engine that refused nothing ran what it was offered, even where no two met.
    less = (ran["refused"] > 0) & ran["at_once"].notna() & (ran["at_once"] > 0)
    offered = trials.set_index("trial_id")["concurrency"]
    at_once = offered.copy()
    at_once.loc[ran.loc[less, "trial_id"]] = ran.loc[less, "at_once"].to_numpy(dtype=int)
    admitted = trials.assign(concurrency=at_once.to_numpy())
    beyond = trials.assign(ran=at_once.to_numpy())
    beyond = beyond[beyond["ran"] < beyond["concurrency"]]
    rates = failure_rates(requests, admitted, [*columns, "concurrency"])
    # Where none was accepted there is no rate.
    drawn = rates[rates["rate"].notna()]
    if drawn.empty:
        return style.nothing_to_draw("No request was accepted: there is no failure rate to draw.")
    figure = style.new_figure(7.6, 3.8 + 0.2 * len(style.all_series(drawn, columns)))
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
            label=style.series_label(key) + _offered(style.rows_of(beyond, key)),
        )
    accepted = drawn["n"] - drawn["rejected"]
    style.concurrency_axis(axes, drawn["concurrency"], accepted)
    style.percent_axis(axes)
    heading = title or "Failed requests against concurrency"
    style.dress(axes, heading, "concurrent requests", _interval(drawn))
    notes = ["n: accepted requests"]
    if int(rates["rejected"].sum()):
        notes.append(f"{int(rates['rejected'].sum())} rejected requests are not counted")
    axes.set_xlabel(f"requests that ran at once ({'; '.join(notes)})", fontsize=style.TEXT)
    style.legend_below(figure, most=2)
    return figure


def _offered(refused: pd.DataFrame) -> str:
    """Say what was offered beyond each concurrency that ran; "" if nothing was."""
    said = [
        f"{', '.join(str(n) for n in sorted(set(group['concurrency'])))} offered: {level} ran"
        for level, group in refused.groupby("ran")
    ]
    return f"; {', '.join(said)}" if said else ""


def _interval(rates: pd.DataFrame) -> str:
    if rates["by_engine"].all():
        return "failed, of accepted\n(95% interval over engines)"
    return "failed, of accepted\n(95%; by request only and too\nnarrow where under 5 engines)"
