"""Failure rate against concurrency."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.stats.configurations import series_columns
from analysis.stats.rates import failure_rates, per_trial


def failure_rate(requests: pd.DataFrame, trials: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the share of requests that failed against concurrency, with 95% intervals over engines.

    One line for each release and prefix sharing, and for whatever else differs between the trials.
    Points stand at the number of requests that ran at once. Where an engine refused requests, that
    is less than the offered concurrency, which the legend then shows. Rejected requests are left
    out of the rate; the label counts them.
    """
    columns = series_columns(trials)
    ran = _ran_at_once(requests, trials)
    rates = failure_rates(requests, trials.assign(concurrency=ran), [*columns, "concurrency"])
    drawn = rates[rates["rate"].notna()]
    if drawn.empty:
        return style.nothing_to_draw("No request was accepted: there is no failure rate to draw.")
    beyond = trials.assign(ran=ran)
    beyond = beyond[beyond["ran"] < beyond["concurrency"]]
    series = style.all_series(drawn, columns)
    figure = style.new_figure(7.6, 3.8 + 0.2 * len(series))
    axes = figure.add_subplot()
    for index, key in enumerate(series):
        label = style.series_label(key) + _offered(style.rows_of(beyond, key))
        style.interval_line(axes, style.rows_of(drawn, key), index, len(series), label)
    style.concurrency_axis(axes, drawn["concurrency"], drawn["n"] - drawn["rejected"])
    style.percent_axis(axes)
    notes = ["n: accepted requests"]
    if rejected := int(rates["rejected"].sum()):
        notes.append(f"{rejected} rejected requests are not counted")
    x_label = f"requests that ran at once ({'; '.join(notes)})"
    how = "95% interval over engines"
    if not drawn["by_engine"].all():
        how = "95%; by request only and too\nnarrow where under 5 engines"
    style.dress(
        axes,
        title or "Failed requests against concurrency",
        x_label,
        f"failed, of accepted\n({how})",
    )
    style.legend_below(figure, most=2)
    return figure


def _ran_at_once(requests: pd.DataFrame, trials: pd.DataFrame) -> pd.Series[int]:
    """Return how many requests each trial ran at once: those offered, unless some were refused."""
    met = per_trial(requests, trials).set_index("trial_id").loc[trials["trial_id"]]
    fewer = ((met["refused"] > 0) & (met["at_once"] > 0)).to_numpy()
    return trials["concurrency"].mask(fewer, met["at_once"].to_numpy()).astype(int)


def _offered(refused: pd.DataFrame) -> str:
    """Return what was offered beyond each concurrency that ran; "" if nothing was."""
    offers = [
        f"{', '.join(str(n) for n in sorted(set(group['concurrency'])))} offered: {level} ran"
        for level, group in refused.groupby("ran")
    ]
    return f"; {', '.join(offers)}" if offers else ""
