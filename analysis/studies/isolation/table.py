"""What examining the cache by itself found, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.plots.tables import HtmlTable, html_table

if TYPE_CHECKING:
    from analysis.interleavings import Result


def isolation_table(untreated: Sequence[Result], treated: Sequence[Result]) -> HtmlTable:
    """Show, for each scenario, how many of its interleavings fail, without and with treatments.

    Both have a result for each prefix sharing, in the same order.
    """
    rows = []
    for before, after in zip(untreated, treated, strict=True):
        fixed = {row["scenario"]: row for row in after.table()}
        for row in before.table():
            rows.append(
                {
                    "prefix sharing": before.prefix_sharing,
                    "scenario": row["scenario"],
                    "workers": row["workers"],
                    "interleavings": row["interleavings"],
                    "failing": _failing(row),
                    "failing with the fixes": _failing(fixed[row["scenario"]]),
                    "broken in any order": row["breaks"],
                    "broken only interleaved": row["breaks by interleaving"],
                }
            )
    return _table(rows)


def broken_rules_table(results: Sequence[Result]) -> HtmlTable:
    """Show the shortest schedule that breaks each rule, what it takes, and where it can happen."""
    rows = [
        {
            "prefix sharing": result.prefix_sharing,
            "rule": failure.rule,
            "how it is broken": failure.message,
            "schedule": str(failure.schedule),
            "of scenario": failure.scenario,
            "takes": failure.needs,
            "reachable on its threads": "yes" if failure.reachable else "no",
        }
        for result in results
        for failure in result.shortest()
    ]
    return _table(rows, empty="No rule was broken.")


def left_out_table(results: Mapping[str, Result]) -> HtmlTable:
    """Show which failures come back when each of the fixes is left out alone."""
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
    return _table(rows)


def _failing(row: dict[str, Any]) -> int | str:
    return int(row["failing"]) if row["complete"] else "not all covered"


def _table(rows: list[dict[str, Any]], empty: str = "") -> HtmlTable:
    frame = pd.DataFrame(rows)
    shown = frame.map(lambda value: f"{value:,}" if isinstance(value, int) else str(value))
    schedules = [name for name in frame.columns if "schedule" in str(name)]
    for name in schedules:
        shown[name] = [f"<code>{escape(schedule)}</code>" for schedule in frame[name]]
    return html_table(shown, frame=frame, empty=empty, html_columns=schedules)
