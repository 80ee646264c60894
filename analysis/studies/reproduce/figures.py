"""The reported test as a table and a chart."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots import style
from analysis.plots.tables import HtmlTable, html_table
from analysis.stats.checks import BEGINS, CHECKS, EXACT
from analysis.studies.reproduce.reported_test import FRESH, USED, counts
from analysis.workloads.named import REPORTED_ANSWER

_SERIES = ["prefix_sharing", "treatments"]


def reported_test_table(answers: pd.DataFrame) -> HtmlTable:
    """Show how each test ended by both checks; `answers` is that of `run_reported_test`.

    One row a setting and number of clients; `frame` is `counts`.
    """
    found = counts(answers)
    histories = list(dict.fromkeys(found["engine"]))
    first = found[found["engine"] == histories[0]]
    shown = first[[*_SERIES, "clients"]].reset_index(drop=True)
    for history in histories:
        own = found[found["engine"] == history]
        for check, title in ((BEGINS, f'starts with "{REPORTED_ANSWER}"'), (EXACT, "exact")):
            rows = own.to_dict("records")
            shown[f"{history}: {title}"] = [_cell(row, check) for row in rows]
    if (shown["treatments"] == "none").all():
        shown = shown.drop(columns="treatments")
    return html_table(shown, frame=found)


def reported_test_figure(answers: pd.DataFrame) -> Figure:
    """Draw the share of answers that fail each check against the number of clients, side by side.

    Filled markers are of fresh engines, open ones of engines that have served other prompts.
    """
    found = counts(answers)
    found = found[found["accepted"] > 0]
    if found.empty:
        return style.nothing_to_draw("No request of the reported test was accepted.")
    series = style.all_series(found, _SERIES)
    figure = style.new_figure(8.2, 3.5 + 0.12 * len(series))
    panels = figure.subplots(1, len(CHECKS), sharey=True)
    count = 2 * len(series)
    for axes, (check, title) in zip(panels, CHECKS.items(), strict=True):
        for number, key in enumerate(series):
            for index, history in enumerate((FRESH, USED)):
                rows = style.rows_of(found, {**key, "engine": history})
                place = style.dodge(2 * number + index, count)
                axes.plot(rows["clients"] * place, rows[check] / rows["accepted"],
                          **_look(number, history))  # fmt: skip
        style.concurrency_axis(axes, found["clients"], found["accepted"])
        style.percent_axis(axes)
        style.dress(axes, title, "clients at once (n: accepted answers)", "answers that fail")
        axes.label_outer()
    named = [_name(key, found) for key in series]
    handles = [Line2D([], [], label=name, **_look(n, FRESH)) for n, name in enumerate(named)]
    grey: dict[str, Any] = {"color": style.GREY, "markersize": 6.5}
    handles += [
        Line2D([], [], label=FRESH, marker="o", linestyle="-", **grey),
        Line2D([], [], label=USED, marker="o", linestyle="--", markerfacecolor="white", **grey),
    ]
    style.legend_below(figure, handles, most=2)
    return figure


def _look(number: int, history: str) -> dict[str, Any]:
    used = history == USED
    return {
        "color": style.colour(number), "marker": style.marker(number), "markersize": 6.5,
        "linewidth": 1.3, "linestyle": "--" if used else "-",
        "markerfacecolor": "white" if used else style.colour(number),
    }  # fmt: skip


def _name(key: dict[str, Any], found: pd.DataFrame) -> str:
    treated = (found["treatments"] != "none").any()
    name = f"prefix sharing {key['prefix_sharing']}"
    return style.words(f"{name}, treatments {key['treatments']}" if treated else name)


def _cell(row: dict[Any, Any], check: str) -> str:
    if not row["accepted"]:
        return f"{row['rejected']} rejected"
    failed = f"{row[check]} of {row['accepted']} fail" if row[check] else "passes"
    return failed + (f", {row['rejected']} rejected" if row["rejected"] else "")
