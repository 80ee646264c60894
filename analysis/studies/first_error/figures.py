"""Figures and tables of notebook 04: broken rules, and how early they were found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.plots import style
from analysis.plots.tables import HtmlTable, html_table
from analysis.runs.tables import arm_of, is_control
from analysis.sanitizer.findings import AT_RISK, SEVERITIES, WRONG_DATA, worst
from analysis.sanitizer.recorded import Checked
from analysis.sanitizer.rules import consequence_of

_SETTING = ["release", "prefix_sharing", "treatments"]
_LOOKS: dict[str, dict[str, Any]] = {
    WRONG_DATA: {"facecolor": style.VERMILLION, "hatch": "", "edgecolor": "white"},
    AT_RISK: {"facecolor": style.SKY, "hatch": "///", "edgecolor": "white"},
}
_WORDS = {WRONG_DATA: "wrong data was read by it", AT_RISK: "the rule is at risk"}


def findings_chart(findings: pd.DataFrame, requests: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the share of requests that met each broken rule, a panel for each setting.

    Takes the tables of a sanitized run. Rejected requests and controls are left out. A finding that
    concerns no request is counted as a share of the trials.
    """
    trials = _with_tuples(trials)
    trials = trials[~trials["treatments"].map(is_control)]
    if trials.empty:
        return style.nothing_to_draw("No trial was checked.")
    keys = style.all_series(trials, _SETTING)
    bars = [_bars(findings, requests, set(style.rows_of(trials, k)["trial_id"])) for k in keys]
    titles = [_title(style.series_label(key)) for key in keys]
    heights = [max(1, len(own)) for own in bars]
    lines = sum(title.count("\n") + 1 for title in titles)
    figure = style.new_figure(8.6, 0.9 + 0.27 * sum(heights) + 0.42 * len(keys) + 0.2 * lines)
    grid = figure.subplots(len(keys), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, title, own in zip(grid, titles, bars, strict=True):
        style.dress(axes, title, "", "")
        _draw(axes, own)
    grid[-1].tick_params(axis="x", labelbottom=True)
    grid[-1].set_xlabel("share of accepted requests (of trials, where it says so)", fontsize=10)
    handles = [Patch(label=text, **_LOOKS[severity]) for severity, text in _WORDS.items()]
    figure.legend(
        handles=handles, loc="outside upper right", ncols=2, fontsize=style.SMALL, frameon=False
    )
    figure.suptitle("Rules that were broken", fontsize=style.TITLE + 1, x=0.01, ha="left", va="top")
    return figure


def lead_times(leads: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw, for wrong answers, how many calls before the first wrong token wrong data was read.

    `leads` is what `detection_lead` returns. One row of bars for each release, prefix sharing and
    set of treatments; the last bar stands for answers before which nothing was found.
    """
    if leads.empty:
        return style.nothing_to_draw("No answer was wrong, so there is nothing that came before.")
    joined = leads.merge(trials[["trial_id", *_SETTING]], on="trial_id", validate="many_to_one")
    joined = _with_tuples(joined)
    groups = style.all_series(joined, _SETTING)
    most = int(joined["invocations_before"].max()) if joined["invocations_before"].count() else 0
    figure = style.new_figure(7.6, 1.0 + 2.0 * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
    for axes, key in zip(panels, groups, strict=True):
        rows = style.rows_of(joined, key)
        before = rows["invocations_before"].dropna().astype(int)
        counts = np.bincount(before, minlength=most + 1)
        axes.bar(range(most + 1), counts, color=style.BLUE, width=0.8)
        axes.bar([most + 2], [len(rows) - len(before)], color=style.VERMILLION, width=0.8)
        ticks = list(range(0, most + 1, max(1, most // 8)))
        axes.set_xticks([*ticks, most + 2], [*map(str, ticks), "never"])
        axes.yaxis.get_major_locator().set_params(integer=True)
        title = _title(f"{style.series_label(key)} (n = {len(rows)} wrong answers)")
        style.dress(axes, title, "", "wrong answers")
    below = "calls of the model before the first wrong token (0: in the same call)"
    panels[-1].set_xlabel(below, fontsize=style.TEXT)
    heading = "When wrong data was first read, before an answer went wrong"
    figure.suptitle(heading, fontsize=style.TITLE + 1, x=0.01, ha="left")
    return figure


def checked_table(checked: Sequence[Checked]) -> HtmlTable:
    """Show, for each setting, what was checked and whether the planted faults were found."""
    rows = [
        {
            **_setting(one),
            "trials": one.trials - one.unobserved,
            "invocations": one.invocations,
            "events": one.events,
            "invocations unchecked": one.unchecked.invocations,
            "planted faults found": f"{one.alarms} of {one.controls}",
            "worth": "void" if one.void else "valid" if one.controls else "not controlled",
        }
        for one in checked
    ]
    return html_table(pd.DataFrame(rows))


def findings_table(checked: Sequence[Checked]) -> HtmlTable:
    """Show every broken rule with its severity, how many met it, and its consequences.

    Rules by which wrong data was read come first. `requests` counts those of all trials.
    """
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(checked):
        for (rule, cause), members in one.groups.items():
            severity = worst(group.severity for _, group in members)
            requests = sum(r is not None for _, group in members for r in group.by_request)
            rows.append(
                {
                    "order": (number, SEVERITIES.index(severity), -len(members)),
                    **_setting(one),
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
        return html_table(pd.DataFrame(), empty=f"No rule was broken{where}.")
    rows.sort(key=lambda row: row["order"])
    frame = pd.DataFrame(rows).drop(columns="order")
    same = [name for name in _setting(checked[0]) if frame[name].nunique() == 1]
    return html_table(frame.drop(columns=same))


def leads_table(leads: pd.DataFrame, count: int = 10) -> HtmlTable:
    """Show wrong answers with the first finding before them, from `detection_lead`."""
    shown = pd.DataFrame(
        {
            "trial": leads["trial_id"],
            "request": leads["request_id"],
            "first wrong token": leads["first_divergence"],
            "first wrong data: rule": leads["rule"].fillna("none was found"),
            "cause": leads["cause"].fillna(""),
            "invocations before": [_text(n, "{:.0f}") for n in leads["invocations_before"]],
            "seconds before": [_text(s, "{:.3f}") for s in leads["seconds_before"]],
        }
    )
    left = len(shown) - count
    more = f"And {left} more." if left > 0 else ""
    return html_table(shown.head(count), frame=shown, empty="No answer was wrong.", below=more)


def _with_tuples(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(treatments=frame["treatments"].map(arm_of))


def _title(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 75, break_on_hyphens=False))


def _setting(checked: Checked) -> dict[str, str]:
    return {
        "release": checked.release,
        "prefix sharing": checked.prefix_sharing,
        "treatments": " + ".join(checked.treatments) or "none",
    }


def _text(value: Any, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


def _bars(
    findings: pd.DataFrame, requests: pd.DataFrame, trials: set[str]
) -> list[tuple[str, str, int, int, str]]:
    """Return name, severity, count, total and unit for each rule and cause, wrong data first."""
    asked = requests[requests["trial_id"].isin(trials) & (requests["outcome"] != "rejected")]
    found = findings[findings["trial_id"].isin(trials)]
    bars = []
    for (rule, cause), group in found.groupby(["rule", "cause"], sort=True):
        severity = WRONG_DATA if (group["severity"] == WRONG_DATA).any() else AT_RISK
        met = len(group.dropna(subset=["request_id"])[["trial_id", "request_id"]].drop_duplicates())
        count = met, max(len(asked), met), ""
        if not met:
            count = group["trial_id"].nunique(), len(trials), " trials"
        bars.append((f"{rule}: {cause}", severity, *count))
    return sorted(bars, key=lambda bar: (bar[1] != WRONG_DATA, -bar[2] / bar[3], bar[0]))


def _draw(axes: Axes, bars: list[tuple[str, str, int, int, str]]) -> None:
    for place, (_, severity, met, of, unit) in enumerate(bars):
        axes.barh(place, met / of, height=0.72, **_LOOKS[severity])
        axes.text(met / of + 0.01, place, f"{met} of {of}{unit}", va="center", fontsize=8)
    if not bars:
        axes.text(0.01, 0, "no rule was broken", va="center", fontsize=style.SMALL)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axes.set_ylim(max(1, len(bars)) - 0.45, -0.55)
    style.grid_along_x(axes)
    style.percent_axis(axes, "x")
    axes.set_xlim(0, 1.14)
    axes.tick_params(axis="x", labelbottom=False)
