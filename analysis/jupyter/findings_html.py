"""Findings of the sanitizer as Jupyter shows them: HTML without scripts."""

from __future__ import annotations

from typing import Any

from analysis.core.templates import render
from analysis.core.wording import counted
from analysis.diagnosis.finding_figure import colours_of, fill_of
from analysis.plots.style import VERMILLION
from analysis.sanitizer.findings import (
    PADDING_KIND,
    TOKEN_KIND,
    WRONG_DATA,
    Finding,
    Findings,
    Group,
)

_SHOWN, _PAGES = 12, 3
"""Most groups in full, and most pages of a finding."""


def findings_html(findings: Findings) -> str:
    """Return the summary, the first groups with pages and stacks, and what was not checked.

    It stays below 300 KB: each group after the first twelve has one line.
    """
    groups = sorted(findings.groups, key=lambda g: -1 if g.first.seq is None else g.first.seq)
    return render(
        "analysis.jupyter",
        "findings.html.j2",
        summary=findings.summary,
        shown=[_finding(g.first, _title(g), g.severity) for g in groups[:_SHOWN]],
        further=[_title(group) for group in groups[_SHOWN:]],
        not_checked=findings.not_checked,
        limits=findings.limits,
        vermillion=VERMILLION,
    )


def finding_html(finding: Finding) -> str:
    """Return a finding with its sentence, pages and stacks."""
    title = f"{finding.severity}: {finding.rule} ({finding.cause})"
    shown = _finding(finding, title, finding.severity)
    return render("analysis.jupyter", "finding.html.j2", finding=shown, vermillion=VERMILLION)


def _title(group: Group) -> str:
    requests = sum(request is not None for request in group.by_request)
    often = "once" if group.count == 1 else counted(group.count, "time")
    where = f" in {requests} requests" if requests > 1 else ""
    return f"{group.severity}: {group.rule} ({group.cause}), {often}{where}"


def _finding(finding: Finding, title: str, severity: str) -> dict[str, Any]:
    words = [finding.at]
    words += [f"request {finding.request_id}"] if finding.request_id else []
    words += [f"other request {finding.other_request_id}"] if finding.other_request_id else []
    if finding.page is not None:
        slot = "" if finding.slot is None else f", slot {finding.slot}"
        words.append(f"page {finding.page}{slot}")
    words += [f"thread {finding.thread}"] if finding.thread else []
    return {
        "title": title,
        "edge": VERMILLION if severity == WRONG_DATA else "currentColor",
        "text": finding.text,
        "where": "; ".join(words),
        "sentence": finding.sentence,
        "stacks": [
            ("engine's stack", finding.stack),
            ("stack of the other request", finding.other_stack),
        ],
        **_pages(finding),
    }


def _pages(finding: Finding) -> dict[str, Any]:
    """Return the slots of the first pages of a finding's scene, before and after its step."""
    scene = finding.context
    if scene is None or not scene.pages:
        return {"strips": []}
    colours, strips = colours_of(finding), []
    writers = set()
    for page in scene.pages[:_PAGES]:
        moments = [(page.before, ", before"), (page.after, ", after")]
        for slots, moment in moments if page.before != page.after else [(page.after, "")]:
            writers |= {slot.request_id for slot in slots if slot.kind == TOKEN_KIND}
            meant = finding.slot if page.page == finding.page else None
            texts = {PADDING_KIND: "P", "nothing": ""}
            strips.append(
                {
                    "label": f"page {page.page}{moment}",
                    "slots": [
                        {
                            "fill": fill_of(slot, colours),
                            "meant": place == meant,
                            "text": (
                                str(slot.position)
                                if slot.kind == TOKEN_KIND
                                else texts.get(slot.kind, "?")
                            )
                            + ("*" if slot.tainted else ""),
                        }
                        for place, slot in enumerate(slots)
                    ],
                }
            )
    return {
        "strips": strips,
        "width": 100 + max(len(page.after) for page in scene.pages) * 26,
        "height": len(strips) * 32 + 4,
        "writers": [
            (name or "unknown", colour) for name, colour in colours.items() if name in writers
        ],
    }
