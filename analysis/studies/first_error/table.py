"""What was checked, and what was found, as tables for readers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd

from analysis.plots.tables import HtmlTable
from analysis.sanitizer.findings import SEVERITIES, worst
from analysis.sanitizer.recorded import Checked
from analysis.sanitizer.rules import consequence_of


def checked_table(checked: Sequence[Checked]) -> HtmlTable:
    """Show, for each setting, what was checked and whether the alarm sounded in its controls."""
    rows = [
        {
            "release": one.release,
            "prefix sharing": one.prefix_sharing,
            "treatments": " + ".join(one.treatments) or "none",
            "trials": one.trials - one.unobserved,
            "invocations": one.invocations,
            "events": one.events,
            "invocations unchecked": one.unchecked.invocations,
            "planted faults found": f"{one.alarms} of {one.controls}",
            "worth": "void" if one.void else "valid" if one.controls else "not controlled",
        }
        for one in checked
    ]
    return _table(pd.DataFrame(rows))


def findings_table(checked: Sequence[Checked]) -> HtmlTable:
    """Show every broken rule with its severity, how many met it, and what it leads to.

    Rules of which wrong data was read come first. `requests` counts those of all trials.
    """
    rows = []
    for one in checked:
        for (rule, cause), members in one.groups.items():
            severity = worst(group.severity for _, group in members)
            requests = sum(r is not None for _, group in members for r in group.by_request)
            rows.append(
                {
                    "release": one.release,
                    "prefix sharing": one.prefix_sharing,
                    "treatments": " + ".join(one.treatments) or "none",
                    "severity": severity,
                    "rule": rule,
                    "cause": cause,
                    "requests": requests or "",
                    "trials": len(members),
                    "what it leads to": consequence_of(rule, cause),
                }
            )
    if not rows:
        where = "" if all(one.complete for one in checked) else " in what was checked"
        return HtmlTable(pd.DataFrame(), f"<p>No rule was broken{where}.</p>")
    setting = ["release", "prefix sharing", "treatments"]
    frame = pd.DataFrame(rows)
    frame["of"] = frame.groupby(setting, sort=False).ngroup()
    frame["rank"] = frame["severity"].map(SEVERITIES.index)
    frame = frame.sort_values(
        ["of", "rank", "trials"], ascending=[True, True, False], kind="stable"
    )
    # What is the same everywhere says nothing.
    same = [name for name in setting if frame[name].nunique() == 1]
    return _table(frame.drop(columns=["of", "rank", *same]).reset_index(drop=True))


def leads_table(ahead: pd.DataFrame, count: int = 10) -> HtmlTable:
    """Show wrong answers with what was found before them: `ahead` is what `leads` returns."""
    if ahead.empty:
        return HtmlTable(ahead, "<p>No answer was wrong.</p>")
    shown = pd.DataFrame(
        {
            "trial": ahead["trial_id"],
            "request": ahead["request_id"],
            "first wrong token": ahead["first_divergence"],
            "first wrong data: rule": ahead["rule"].fillna("none was found"),
            "cause": ahead["cause"].fillna(""),
            "invocations before": ahead["invocations_before"].map(
                lambda n: "" if pd.isna(n) else int(n)
            ),
            "seconds before": ahead["seconds_before"].map(
                lambda s: "" if pd.isna(s) else f"{s:.3f}"
            ),
        }
    )
    left = len(shown) - count
    table = _table(shown.head(count))
    if left > 0:
        return HtmlTable(shown, f"{table.markup}<p>And {left} more.</p>")
    return table


def _table(frame: pd.DataFrame) -> HtmlTable:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:left">{escape(str(v))}</td>' for v in row)
        + "</tr>"
        for row in frame.itertuples(index=False)
    )
    return HtmlTable(frame, f"<table><tr>{head}</tr>{body}</table>")
