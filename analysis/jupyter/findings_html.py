"""What a sanitizer found, as Jupyter shows it: HTML of its own, without scripts.

Colours of text and lines are those of the page, so that light and dark themes both can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from analysis.plots.finding import colours_of, fill_of
from analysis.plots.style import VERMILLION
from analysis.sanitizer.findings import PADDING_KIND, TOKEN_KIND, WRONG_DATA

if TYPE_CHECKING:
    from analysis.sanitizer.findings import Finding, Findings, Group, Slot

_IN_FULL, _SIDE, _LEFT, _PAGES = 12, 26, 96, 3
_TEXT, _STACK = 600, 4000
"""Most characters of a sentence and of a stack that are shown."""


def findings_html(findings: Findings) -> str:
    """Return the summary, each group with its sentence, pages and stacks, and what was not checked.

    It stays under 300 KB: the groups after the first twelve have a line each.
    """
    groups = sorted(findings.groups, key=lambda g: -1 if g.first.seq is None else g.first.seq)
    parts = [f"<div><b>{escape(findings.summary)}</b></div>"]
    parts += [_one(_title(g), g.severity, g.first) for g in groups[:_IN_FULL]]
    if more := groups[_IN_FULL:]:
        lines = "".join(f"<li>{escape(_title(group))}</li>" for group in more)
        parts.append(f"<div>And {len(more)} more causes:</div><ul>{lines}</ul>")
    parts += [
        f"<div><i>Not checked:</i> {escape(_cut(note))}</div>" for note in findings.not_checked
    ]
    parts += [
        f"<div><i>Limit on this release:</i> {escape(_cut(f'{rule}: {limit}'))}</div>"
        for rule, limit in findings.limits.items()
    ]
    return f'<div style="max-width:820px;line-height:1.45">{"".join(parts)}</div>'


def finding_html(finding: Finding) -> str:
    """Return a finding with its sentence, pages and stacks."""
    title = f"{finding.severity}: {finding.rule} ({finding.cause})"
    return _one(title, finding.severity, finding)


def _title(group: Group) -> str:
    requests = sum(request is not None for request in group.by_request)
    often = "once" if group.count == 1 else f"{group.count} times"
    met = f" in {requests} requests" if requests > 1 else ""
    return f"{group.severity}: {group.rule} ({group.cause}), {often}{met}"


def _one(title: str, severity: str, first: Finding) -> str:
    edge = VERMILLION if severity == WRONG_DATA else "currentColor"
    parts = [
        f"<div><b>{escape(title)}</b></div>",
        f"<div>{escape(_cut(first.text))}</div>",
        f'<div style="opacity:.75;font-size:90%">{escape(_where(first))}<br>'
        f"Rule: {escape(first.sentence)}</div>",
        _picture(first),
    ]
    for title, stack in (("engine's stack", first.stack), ("the other one's", first.other_stack)):
        if stack:
            parts.append(
                f"<details><summary>{title}</summary>"
                f'<pre style="font-size:85%">{escape(stack[-_STACK:])}</pre></details>'
            )
    style = f"border-left:3px solid {edge};padding:2px 0 2px 10px;margin:10px 0"
    return f'<div style="{style}">{"".join(parts)}</div>'


def _where(finding: Finding) -> str:
    words = [finding.at]
    if finding.request_id:
        words.append(f"request {finding.request_id}")
    if finding.other_request_id:
        words.append(f"the other one {finding.other_request_id}")
    if finding.page is not None:
        slot = "" if finding.slot is None else f", slot {finding.slot}"
        words.append(f"page {finding.page}{slot}")
    if finding.thread:
        words.append(f"thread {finding.thread}")
    return _cut("; ".join(words))


def _picture(finding: Finding) -> str:
    """Return the first pages of a finding's scene, before and after its step."""
    scene = finding.context
    if scene is None or not scene.pages:
        return ""
    colours = colours_of(finding)
    rows: list[str] = []
    for page in scene.pages[:_PAGES]:
        changed = page.before != page.after
        strips = [(page.before, ", before"), (page.after, ", after")]
        for slots, moment in strips if changed else [(page.after, "")]:
            meant = finding.slot if page.page == finding.page else None
            rows.append(_strip(slots, f"page {page.page}{moment}", meant, colours, len(rows)))
    width = _LEFT + max(len(page.after) for page in scene.pages) * _SIDE + 4
    height = len(rows) * (_SIDE + 6) + 4
    shown = [slot for page in scene.pages[:_PAGES] for slot in (*page.before, *page.after)]
    writers = {slot.request_id for slot in shown if slot.kind == TOKEN_KIND}
    whose = [
        f"{escape(_cut(name or 'unknown'))} {_square(colour)}"
        for name, colour in colours.items()
        if name in writers
    ]
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' style="max-width:100%;font:11px sans-serif" aria-label="{escape(_cut(finding.text))}">'
        f"{''.join(rows)}</svg>"
        f'<div style="font-size:85%">Numbers are positions of {", ".join(whose) or "nobody"};'
        " P is padding, ? unknown, empty never written, * computed from wrong data.</div>"
    )


def _square(colour: str) -> str:
    return f'<span style="background:{colour};padding:0 .6em;border:1px solid #777"></span>'


def _strip(
    slots: Sequence[Slot],
    label: str,
    meant: int | None,
    colours: dict[str | None, str],
    row: int,
) -> str:
    y = row * (_SIDE + 6) + 3
    parts = [f'<text x="0" y="{y + 17}" fill="currentColor">{escape(label)}</text>']
    for place, slot in enumerate(slots):
        x = _LEFT + place * _SIDE
        line = f'stroke="{VERMILLION}" stroke-width="3"' if place == meant else 'stroke="#777"'
        said = {TOKEN_KIND: str(slot.position), PADDING_KIND: "P", "nothing": ""}
        text = said.get(slot.kind, "?") + ("*" if slot.tainted else "")
        parts.append(
            f'<rect x="{x + 1}" y="{y}" width="{_SIDE - 3}" height="{_SIDE - 2}"'
            f' fill="{fill_of(slot, colours)}" {line}/>'
            f'<text x="{x + _SIDE / 2 - 0.5}" y="{y + 16}" text-anchor="middle" fill="#000">'
            f"{text}</text>"
        )
    return "".join(parts)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
