"""Verdicts as a figure and a table, with the failures of each arm."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.core.wording import counted, p_value
from analysis.plots import style
from analysis.plots.tables import HtmlTable
from analysis.studies.causes.estimates import Arm
from analysis.studies.causes.hypotheses import SUSPECTS
from analysis.studies.causes.verdicts import Verdict
from analysis.studies.causes.words import exposure_of, remark

_LOOKS: dict[str, dict[str, Any]] = {
    "supported": {"color": style.VERMILLION, "marker": "D"},
    "contributes": {"color": style.ORANGE, "marker": "s"},
    "refuted": {"color": style.BLUE, "marker": "o"},
    "undecided": {"color": style.GREY, "marker": "v"},
}
_OWN_CONTROL: dict[str, Any] = {
    "color": style.BLACK, "marker": "|", "markersize": 13, "linestyle": ""
}  # fmt: skip
_ROW = 0.36
_COLUMNS = {
    "hypothesis": "hypothesis",
    "without": "failed without its treatment",
    "single": "with it alone",
    "leave_one_out": "with all fixes but it",
    "all_fixes": "with all fixes",
    "p_shown": "p, adjusted",
    "exposure": "exposure, without and with it",
    "findings": "requests with findings, without and with it alone",
}
"""Columns of the frame of `verdict_table` that are shown as they are, and their headings."""


def verdict_figure(verdicts: Sequence[Verdict], title: str) -> Figure:
    """Draw failure rates with 95% intervals over engines, a line for each hypothesis of a scenario.

    Left, each treatment alone; the dashed line is the rate without any treatment, and a cause moves
    to the left of it. Right, all fixes but one; the dashed line is the rate with all fixes, and a
    cause moves to the right of it. A treatment that is no fix has no mark at the right. Colour and
    marker show the verdict.
    """
    if not verdicts:
        return style.nothing_to_draw("No hypothesis was tested.")
    rows = _rows(verdicts)
    figure = style.new_figure(10.4, 1.5 + _ROW * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    bare = next((v.without for v in verdicts if not v.hypothesis.beside), verdicts[0].without)
    by_engine = all(verdict.without.rate.by_engine for verdict in verdicts)
    how = "95% interval " + ("over engines" if by_engine else "by request only: too narrow")
    for axes, name, arm, dashed in (
        (left, "Its treatment alone", bare, "without any"),
        (right, "All fixes but it", verdicts[0].all_fixes, "with all fixes"),
    ):
        heading = f"{name}\n(dashed: {dashed}, {arm.failures} of {arm.n})"
        style.dress(axes, heading, f"failed requests\n({how})", "")
        if arm.n:
            axes.axvline(arm.rate.value, color=style.BLACK, linestyle="--", linewidth=1.1)
            axes.axvspan(arm.rate.low, arm.rate.high, color="#EDEDED", zorder=0)
    for place, row in enumerate(rows):
        if isinstance(row, Verdict):
            _mark(left, place, row, row.single)
            if row.ablation is not None:
                _mark(right, place, row, row.leave_one_out)
            if row.hypothesis.beside and row.without.n:
                left.plot(row.without.rate.value, place, **_OWN_CONTROL)
    for axes in (left, right):
        style.grid_along_x(axes)
        style.percent_axis(axes, "x")
        axes.set_ylim(len(rows) - 0.4, -0.6)
    labels = [r if isinstance(r, str) else r.hypothesis.treatment for r in rows]
    left.set_yticks(range(len(rows)), labels)
    for label, row in zip(left.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
    right.tick_params(left=False)
    handles = [Line2D([], [], linestyle="", label=name, **look) for name, look in _LOOKS.items()]
    if any(verdict.hypothesis.beside for verdict in verdicts):
        name = "without it, where that is not the dashed line"
        handles.append(Line2D([], [], label=name, **_OWN_CONTROL))
    style.legend_below(figure, handles, most=len(handles))
    figure.suptitle(title, fontsize=style.TITLE + 1, x=0.01, ha="left")
    return figure


def verdict_table(verdicts: Sequence[Verdict]) -> HtmlTable:
    """Show each hypothesis of a scenario: failures of its arms, p, verdict, exposure, findings."""
    frame = pd.DataFrame([_row(verdict) for verdict in verdicts])
    if frame.empty:
        return HtmlTable(frame, "<p>No hypothesis was tested.</p>")
    heads = ["treatment", "verdict", *_COLUMNS.values()]
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = []
    for suspect, group in frame.groupby("suspect", sort=False):
        body.append(f'<tr><th colspan="{len(heads)}">{html.escape(str(suspect))}</th></tr>')
        for row in group.to_dict("records"):
            upstream = f" ({row['upstream']})" if isinstance(row["upstream"], str) else ""
            cells = (
                f"<code>{html.escape(row['treatment'])}</code>{html.escape(upstream)}",
                f"<strong>{row['verdict']}</strong> {html.escape(row['remark'])}",
                *(html.escape(str(row[name])) for name in _COLUMNS),
            )
            body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    markup = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    tests = verdicts[0].tests
    below = f"p: sign-flip test over pairs of engines, adjusted for {tests} hypotheses (Holm)."
    return HtmlTable(frame, f"{markup}<p>{below}</p>")


def _row(verdict: Verdict) -> dict[str, object]:
    known, effect = verdict.hypothesis, verdict.effect
    arms = {
        "without": verdict.without,
        "single": verdict.single,
        "leave_one_out": None if verdict.ablation is None else verdict.leave_one_out,
        "all_fixes": verdict.all_fixes,
    }
    return {
        "suspect": SUSPECTS[known.suspect],
        "hypothesis": known.statement,
        "treatment": known.treatment,
        "verdict": verdict.status,
        **{name: f"{arm.failures} of {arm.n}" if arm else "" for name, arm in arms.items()},
        "only_without": effect.only_first,
        "only_single": effect.only_second,
        "rejected_without": effect.first_rejected,
        "rejected_single": effect.second_rejected,
        "engines": len(verdict.nets),
        "p_value": verdict.p_value,
        "p_adjusted": verdict.p_adjusted,
        "icc": verdict.without.rate.icc,
        "upstream": known.upstream,
        "p_shown": f"{p_value(verdict.p_adjusted)}, {counted(len(verdict.nets), 'pair')}",
        "exposure": exposure_of(verdict),
        "findings": f"{_findings(verdict.without)}; {_findings(verdict.single)}",
        "remark": remark(verdict),
    }


def _findings(arm: Arm) -> str:
    return f"{arm.wrong_data} wrong data, {arm.at_risk} at risk"


def _rows(verdicts: Sequence[Verdict]) -> list[Verdict | str]:
    """Return the verdicts under the titles of their suspects."""
    rows: list[Verdict | str] = []
    for suspect, title in SUSPECTS.items():
        own = [v for v in verdicts if v.hypothesis.suspect == suspect]
        rows += [title, *own] if own else []
    return rows


def _mark(axes: Axes, place: int, verdict: Verdict, arm: Arm) -> None:
    if not arm.n:
        return
    rate = arm.rate
    around = [[max(0.0, rate.value - rate.low)], [max(0.0, rate.high - rate.value)]]
    axes.errorbar(
        rate.value, place, xerr=around, markersize=6.5, elinewidth=1.6, capsize=3,
        **_LOOKS[verdict.status],
    )  # fmt: skip
