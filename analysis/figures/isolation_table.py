"""What examining the cache by itself found, as tables for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.figures.tables import HtmlTable

if TYPE_CHECKING:
    from analysis.isolate import Result


def isolation_table(results: Sequence[Result]) -> HtmlTable:
    """Show, for each scenario, its interleavings, how many fail, and which rules they break."""
    rows = [
        {
            "prefix sharing": result.prefix_sharing,
            "treatments": "fixes" if result.treatments else "none",
            "scenario": row["scenario"],
            "workers": row["workers"],
            "interleavings": row["interleavings"],
            "failing": row["failing"] if row["complete"] else f"{row['failing']} so far",
            "broken in any order": row["breaks"],
            "broken only interleaved": row["breaks by interleaving"],
        }
        for result in results
        for row in result.table()
    ]
    return _table(pd.DataFrame(rows), ["interleavings"])


def broken_rules_table(results: Sequence[Result]) -> HtmlTable:
    """Show the shortest schedule that breaks each rule, what it takes, and where it can happen."""
    rows = [
        {
            "prefix sharing": result.prefix_sharing,
            "treatments": "fixes" if result.treatments else "none",
            "rule": failure.rule,
            "the rule": failure.sentence,
            "how it is broken": failure.message,
            "schedule": str(failure.schedule),
            "scenario": failure.scenario,
            "takes": failure.needs,
            "happens": failure.happens,
        }
        for result in results
        for failure in result.shortest()
    ]
    if not rows:
        return HtmlTable(pd.DataFrame(), "<p>No rule was broken.</p>")
    return _table(pd.DataFrame(rows))


def left_out_table(results: Mapping[str, Result]) -> HtmlTable:
    """Show what comes back when each of the fixes is left out alone."""
    rows = []
    for name, result in results.items():
        rules = list(dict.fromkeys(failure.rule for failure in result.shortest()))
        shortest = min(result.failures, key=lambda f: len(f.schedule), default=None)
        rows.append(
            {
                "left out": name,
                "comes back": ", ".join(rules) or "nothing that shows here",
                "shortest schedule": "" if shortest is None else str(shortest.schedule),
                "scenario": "" if shortest is None else shortest.scenario,
            }
        )
    return _table(pd.DataFrame(rows))


def _table(frame: pd.DataFrame, numbers: Sequence[str] = ()) -> HtmlTable:
    header = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    body = "".join(
        f"<tr>{''.join(_cell(name, value, numbers) for name, value in row.items())}</tr>"
        for row in frame.to_dict("records")
    )
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
    return HtmlTable(frame, table)


def _cell(name: Any, value: Any, numbers: Sequence[str]) -> str:
    if name in numbers or isinstance(value, int):
        return f'<td style="text-align: right">{value:,}</td>'
    text = escape(str(value))
    return f"<td><code>{text}</code></td>" if "schedule" in str(name) else f"<td>{text}</td>"
