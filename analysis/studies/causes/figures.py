"""Hypotheses and their verdicts: failures without and with each treatment, and all but it."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots import style
from analysis.plots.tables import HtmlTable
from analysis.studies.causes.hypotheses import SUSPECTS
from analysis.studies.causes.verdicts import WORDS, Arm, Verdict
from analysis.studies.causes.words import verdict_in_words

_COLOURS = {
    "supported": style.VERMILLION,
    "contributes": style.ORANGE,
    "refuted": style.BLUE,
    "undecided": style.GREY,
}
_MARKERS = {"supported": "D", "contributes": "s", "refuted": "o", "undecided": "v"}
_ROW = 0.36


def verdict_figure(verdicts: Sequence[Verdict], title: str) -> Figure:
    """Draw failure rates with 95% intervals over engines, a line for each hypothesis of a scenario.

    Left, each treatment alone beside the rate without any (dashed: a cause moves to the left);
    right, all fixes but it (a cause moves to the right, away from the dashed rate of all fixes).
    Colour and marker tell the verdict. One that is no fix of the release has no mark at the right.
    """
    if not verdicts:
        return style.nothing_to_draw("No hypothesis was tried.")
    rows = _rows(verdicts)
    figure = style.new_figure(10.4, 1.5 + _ROW * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    bare = next((v.without for v in verdicts if not v.hypothesis.beside), verdicts[0].without)
    for axes, name, arm, dashed in (
        (left, "Its treatment alone", bare, "without any"),
        (right, "All fixes but it", verdicts[0].everything, "with all fixes"),
    ):
        heading = f"{name}\n(dashed: {dashed}, {arm.failures} of {arm.n})"
        style.dress(axes, heading, f"failed requests\n({_interval(verdicts)})", "")
        _reference(axes, arm)
    for place, row in enumerate(rows):
        if isinstance(row, Verdict):
            _mark(left, place, row, row.alone)
            if row.back is not None:
                _mark(right, place, row, row.all_but)
            if row.hypothesis.beside and row.without.n:
                # It has a control of its own: its rate without is not the dashed one.
                left.plot(row.without.rate, place, "|", color=style.BLACK, markersize=13)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color="#E3E3E3", linewidth=0.8)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
    labels = [r if isinstance(r, str) else r.hypothesis.treatment for r in rows]
    left.set_yticks(range(len(rows)), labels)
    for label, row in zip(left.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
    right.tick_params(left=False)
    handles = [
        Line2D([], [], color=_COLOURS[w], marker=_MARKERS[w], linestyle="", label=w) for w in WORDS
    ]
    if any(verdict.hypothesis.beside for verdict in verdicts):
        name = "without it, where that is not the dashed line"
        handles.append(
            Line2D([], [], color=style.BLACK, marker="|", markersize=13, linestyle="", label=name)
        )
    style.legend_below(figure, handles, most=len(handles))
    figure.suptitle(title, fontsize=style.TITLE + 1, x=0.01, ha="left")
    return figure


def verdict_table(verdicts: Sequence[Verdict]) -> HtmlTable:
    """Show each hypothesis with its verdict, both arms' failures and findings, and why."""
    rows = []
    for verdict in verdicts:
        known, effect = verdict.hypothesis, verdict.effect
        rows.append(
            {
                "suspect": SUSPECTS[known.suspect],
                "hypothesis": known.statement,
                "treatment": known.treatment,
                "verdict": verdict.word,
                "without": f"{verdict.without.failures} of {verdict.without.n}",
                "alone": f"{verdict.alone.failures} of {verdict.alone.n}",
                "only_without": effect.only_first,
                "only_alone": effect.only_second,
                "rejected_without": effect.first_rejected,
                "rejected_alone": effect.second_rejected,
                "all_but": f"{verdict.all_but.failures} of {verdict.all_but.n}",
                "engines": len(verdict.nets),
                "p_value": verdict.p_value,
                "p_adjusted": verdict.p_adjusted,
                "icc": verdict.without.measured.icc,
                "findings_without": _findings(verdict.without),
                "findings_alone": _findings(verdict.alone),
                "upstream": known.upstream,
                "why": verdict_in_words(verdict),
            }
        )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return HtmlTable(frame, "<p>No hypothesis was tried.</p>")
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "hypothesis", "treatment", "verdict", "why",
            "requests with findings, without / with it alone",
        )
    )  # fmt: skip
    body = []
    for suspect, group in frame.groupby("suspect", sort=False):
        body.append(f'<tr><th colspan="5">{html.escape(str(suspect))}</th></tr>')
        for row in group.to_dict("records"):
            upstream = f" ({row['upstream']})" if isinstance(row["upstream"], str) else ""
            trials = (
                html.escape(row["hypothesis"]),
                f"<code>{html.escape(row['treatment'])}</code>{html.escape(upstream)}",
                f"<strong>{row['verdict']}</strong>",
                html.escape(row["why"]),
                f"{row['findings_without']}<br>{row['findings_alone']}",
            )
            body.append("<tr>" + "".join(f"<td>{trial}</td>" for trial in trials) + "</tr>")
    return HtmlTable(
        frame, f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _interval(verdicts: Sequence[Verdict]) -> str:
    if all(verdict.without.measured.by_engine for verdict in verdicts):
        return "95% interval over engines"
    return "95% interval by request only: too narrow"


def _findings(arm: Arm) -> str:
    return f"{arm.wrong_data} wrong data, {arm.at_risk} at risk"


def _rows(verdicts: Sequence[Verdict]) -> list[Verdict | str]:
    """Return the verdicts under the titles of their suspects."""
    rows: list[Verdict | str] = []
    for suspect, title in SUSPECTS.items():
        mine = [v for v in verdicts if v.hypothesis.suspect == suspect]
        rows += [title, *mine] if mine else []
    return rows


def _reference(axes: Axes, arm: Arm) -> None:
    if not arm.n:
        return
    low, high = arm.interval
    axes.axvline(arm.rate, color=style.BLACK, linestyle="--", linewidth=1.1)
    axes.axvspan(low, high, color="#EDEDED", zorder=0)


def _mark(axes: Axes, place: int, verdict: Verdict, arm: Arm) -> None:
    if not arm.n:
        return
    low, high = arm.interval
    axes.errorbar(
        arm.rate,
        place,
        xerr=[[max(0.0, arm.rate - low)], [max(0.0, high - arm.rate)]],
        color=_COLOURS[verdict.word],
        marker=_MARKERS[verdict.word],
        markersize=6.5,
        elinewidth=1.6,
        capsize=3,
    )
