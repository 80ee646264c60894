"""Failure rate against concurrency."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.stats.checks import CHECKS, by_check
from analysis.stats.configurations import labelled, series_columns
from analysis.stats.rates import failure_rates, per_trial

_TITLE = "Failed requests against concurrency"
_WIDTH, _NARROW = 7.6, 4.1
"""Inches of a panel by itself, and beside another one."""


def failure_rate(requests: pd.DataFrame, trials: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the share of requests that failed against concurrency, with 95% intervals over engines.

    One line for each release and prefix sharing, and for whatever else differs between the trials.
    Points stand at the number of requests that ran at once. Where an engine refused requests, that
    is less than the offered concurrency, which the legend then shows. Rejected requests are left
    out of the rate; the label counts them.
    """
    return _draw({title or _TITLE: requests}, trials)


def failure_rate_by_check(requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the same twice, side by side: by the report's check, and by exact equality."""
    return _draw({title: by_check(requests, name) for name, title in CHECKS.items()}, trials)


def _draw(panels: Mapping[str, pd.DataFrame], trials: pd.DataFrame) -> Figure:
    """Draw a panel for each title, of requests that differ only in their outcomes."""
    trials = labelled(trials)
    columns = series_columns(trials)
    ran = _ran_at_once(next(iter(panels.values())), trials)
    placed = trials.assign(concurrency=ran)
    rates = {
        title: failure_rates(requests, placed, [*columns, "concurrency"])
        for title, requests in panels.items()
    }
    some = next(iter(rates.values()))
    drawn = some[some["rate"].notna()]
    if drawn.empty:
        return style.nothing_to_draw("No request was accepted: there is no failure rate to draw.")
    beyond = trials.assign(ran=ran)
    beyond = beyond[beyond["ran"] < beyond["concurrency"]]
    series = style.all_series(drawn, columns)
    wide = _WIDTH if len(panels) == 1 else _NARROW * len(panels)
    figure = style.new_figure(wide, 3.8 + 0.2 * len(series))
    labels = [style.series_label(key) + _offered(style.rows_of(beyond, key)) for key in series]
    x_label, y_label = _axis_labels(some)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(every, rates.items(), strict=True):
        shown = rows[rows["rate"].notna()]
        for index, key in enumerate(series):
            label = labels[index] if axes is every[0] else ""
            style.interval_line(axes, style.rows_of(shown, key), index, len(series), label)
        style.concurrency_axis(axes, shown["concurrency"], shown["n"] - shown["rejected"])
        style.percent_axis(axes)
        style.dress(axes, title, textwrap.fill(x_label, int(wide / len(panels) * 11)), y_label)
        axes.label_outer()
    style.legend_below(figure, most=2)
    return figure


def _axis_labels(rates: pd.DataFrame) -> tuple[str, str]:
    notes = ["n: accepted requests"]
    if rejected := int(rates["rejected"].sum()):
        notes.append(f"{rejected} rejected requests are not counted")
    how = "95% interval over engines"
    if not rates.loc[rates["rate"].notna(), "by_engine"].all():
        how = "95%; by request only and too\nnarrow where under 5 engines"
    x_label = f"requests that ran at once ({'; '.join(notes)})"
    return x_label, f"failed, of accepted\n({how})"


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
