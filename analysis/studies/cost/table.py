"""Costs as a table: an arm a row, a metric a column, every number with its interval."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.plots.tables import HtmlTable
from analysis.studies.cost import METRICS, WATCHED, Metric

_SHOWN = ("costs", "saves")
_NARROW = 0.01


def cost_table(costs: pd.DataFrame, metrics: Sequence[Metric] = (*METRICS, *WATCHED)) -> HtmlTable:
    """Show each arm of one setting compared with the untreated engine; `frame` is `costs`.

    Ratios are treated / untreated, differences in percentage points. What is shown to cost or to
    save, with all arms minded, says so.
    """
    metrics = [metric for metric in metrics if (costs["metric"] == metric.name).any()]
    if costs.empty:
        return HtmlTable(costs, "<p>No two trials could be compared.</p>")
    head = "".join(
        f"<th>{html.escape(name)}</th>"
        for name in ("compared with untreated", "pairs", *(m.title for m in metrics))
    )
    rows = []
    for arm, group in costs.groupby("arm", sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        trials = "".join(f"<td>{_trial(by_metric.get(m.name), m)}</td>" for m in metrics)
        rows.append(f"<tr><th>{html.escape(str(arm))}</th><td>{_pairs(group)}</td>{trials}</tr>")
    return HtmlTable(
        costs, f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _pairs(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    left = int(first["left_out"])
    return f"{int(first['pairs'])}" + (f" ({left} left out)" if left else "")


def _trial(row: dict[Any, Any] | None, metric: Metric) -> str:
    if row is None or math.isnan(row["estimate"]):
        return "-"
    values = [row[name] for name in ("estimate", "low", "high")]
    if metric.scale == "ratio":
        narrow = values[2] - values[1] < _NARROW  # then the second digit tells nothing
        words = [f"{value:.{3 if narrow else 2}f}" for value in values]
    else:
        words = [f"{100 * value:+.1f}" if round(1000 * value) else "0" for value in values]
    if math.isnan(values[1]):
        return f"{words[0]} (too few trials)"
    text = f"{words[0]} ({words[1]} to {words[2]})"
    return f"<mark>{text} {row['verdict']}</mark>" if row["verdict"] in _SHOWN else text
