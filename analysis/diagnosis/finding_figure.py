"""The figure of a finding: its pages before and after the step, with each slot's writer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from analysis.plots import style
from analysis.sanitizer.findings import (
    NOTHING_KIND,
    PADDING_KIND,
    TOKEN_KIND,
    Finding,
    FindingContext,
    PageContext,
    Slot,
)

MINE, OTHER = style.SKY, style.ORANGE
FURTHER = (style.GREEN, style.PURPLE, style.YELLOW, "#B0B0F0")
"""Colours of the affected request, the other request, and further writers."""
_PADDING, _UNKNOWN = "#C9C9C9", "#EDEDED"
_LEFT, _WIDTH, _STEP, _CHARACTERS = 4.6, 9.0, 0.21, 92
"""Space for labels in slots; width and line height in inches; characters a line."""

_Line = tuple[str, float, str]
"""A line of text, its size and its colour."""


def finding_figure(finding: Finding) -> Figure:
    """Draw the pages of a finding, each as a strip of slots before its step and one after it.

    A slot has the colour of the request that wrote it, and shows the position that it holds. A page
    that the step did not change has one strip. A finding without a context is drawn as text.
    """
    scene = finding.context
    if scene is None or not scene.pages:
        return _in_words(finding)
    slots = max(len(page.after) for page in scene.pages)
    strips = sum(1 + (page.before != page.after) for page in scene.pages)
    heading, notes = _heading(finding), _tables(scene)
    side = _WIDTH / (_LEFT + slots + 0.6)
    rows = strips * 1.25 + len(scene.pages) * 0.75
    below = _STEP * len(notes) + 0.75
    height = _STEP * (len(heading) + 1) + rows * side + below
    figure = style.new_figure(_WIDTH, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, below / height, 1, rows * side / height))
    axes.set_xlim(-_LEFT, slots + 0.6)
    axes.set_ylim(rows, 0)
    axes.axis("off")
    _write(figure, heading, 1 - 0.08 / height)
    colours = colours_of(finding)
    y = 0.3
    for page in scene.pages:
        y = _page(axes, page, y, scene, finding, colours)
    _write(figure, notes, (below - 0.05) / height)
    style.legend_below(
        figure,
        _legend(scene, finding, colours),
        most=5,
        loc="lower left",
        bbox_to_anchor=(0.005, 0.0),
        handlelength=1.4,
        columnspacing=1.3,
    )
    return figure


def colours_of(finding: Finding) -> dict[str | None, str]:
    """Return a colour for every request that wrote a slot in a finding's context."""
    colours: dict[str | None, str] = {}
    if finding.request_id:
        colours[finding.request_id] = MINE
    if finding.other_request_id:
        colours.setdefault(finding.other_request_id, OTHER)
    further = iter(FURTHER)
    for page in finding.context.pages if finding.context else ():
        for slot in (*page.before, *page.after):
            if slot.kind == TOKEN_KIND and slot.request_id not in colours:
                colours[slot.request_id] = next(further, FURTHER[-1])
    return colours


def fill_of(slot: Slot, colours: dict[str | None, str]) -> str:
    """Return the colour of a slot."""
    if slot.kind == TOKEN_KIND:
        return colours.get(slot.request_id, _UNKNOWN)
    return {NOTHING_KIND: "#FFFFFF", PADDING_KIND: _PADDING}.get(slot.kind, _UNKNOWN)


def _page(
    axes: Axes,
    page: PageContext,
    y: float,
    scene: FindingContext,
    finding: Finding,
    colours: dict[str | None, str],
) -> float:
    """Draw a page's strips from y on; return the y of the next page."""
    changed = page.before != page.after
    strips = [(page.before, "before"), (page.after, "after")] if changed else [(page.after, "")]
    where = style.words(textwrap.shorten(page.where, 26, placeholder="…"))
    axes.text(-_LEFT + 0.15, y + 0.5, f"page {page.page}", va="center", fontsize=style.TEXT)
    axes.text(-_LEFT + 0.15, y + 1.05, where, va="center", fontsize=style.LEAST, color=style.GREY)
    read = {slot for number, slot in scene.reads if number == page.page}
    for slots, label in strips:
        axes.text(-0.25, y + 0.5, label, ha="right", va="center", fontsize=style.SMALL)
        _strip(axes, slots, y, colours)
        y += 1.25
    for slot in read:
        axes.plot([slot + 0.06, slot + 0.94], [y - 0.15] * 2, color="black", linewidth=2.2)
    if finding.page == page.page and finding.slot is not None:
        height = 1.25 * len(strips) - 0.25
        axes.add_patch(
            Rectangle(
                (finding.slot, y - 0.25 - height), 1, height, fill=False,
                edgecolor=style.VERMILLION, linewidth=2.6, zorder=5,
            )
        )  # fmt: skip
    return y + 0.75


def _strip(axes: Axes, slots: Sequence[Slot], y: float, colours: dict[str | None, str]) -> None:
    for place, slot in enumerate(slots):
        hatch = "////" if slot.kind == PADDING_KIND else None
        axes.add_patch(
            Rectangle(
                (place, y), 1, 1, facecolor=fill_of(slot, colours), edgecolor="#7A7A7A",
                linewidth=0.6, hatch=hatch,
            )
        )  # fmt: skip
        if slot.kind == TOKEN_KIND:
            axes.text(
                place + 0.5, y + 0.53, str(slot.position), ha="center", va="center", fontsize=8
            )
        if slot.tainted:
            axes.plot([place + 0.84], [y + 0.17], marker="o", color="black", markersize=2.6)


def _heading(finding: Finding) -> list[_Line]:
    """Return the lines above the figure: the message, the rule and the step."""
    happened = textwrap.wrap(finding.text, _CHARACTERS)[:4]
    rule = textwrap.wrap(f"{finding.severity}. Rule: {finding.sentence}", _CHARACTERS + 14)[:3]
    return [
        *((line, style.TITLE - 1, "black") for line in happened),
        *((line, style.SMALL, style.GREY) for line in (*rule, finding.at)),
    ]


def _tables(scene: FindingContext) -> list[_Line]:
    lines = []
    for request, pages in scene.tables.items():
        length = scene.lengths.get(request)
        tokens = "" if length is None else f", {length} tokens"
        listed = textwrap.shorten(", ".join(map(str, pages)) or "none", 70, placeholder=" …")
        lines.append((f"pages of {request}{tokens}: {listed}", style.SMALL, "black"))
    return lines


def _legend(
    scene: FindingContext, finding: Finding, colours: dict[str | None, str]
) -> list[Patch | Line2D]:
    slots = [slot for page in scene.pages for slot in (*page.before, *page.after)]
    writers = {slot.request_id for slot in slots if slot.kind == TOKEN_KIND}
    kinds = {slot.kind for slot in slots}
    edge: dict[str, Any] = {"edgecolor": "#7A7A7A", "linewidth": 0.6}
    shown: list[Patch | Line2D] = [
        Patch(
            facecolor=colour,
            label=f"written by {style.words(name or 'an unknown request')}",
            **edge,
        )
        for name, colour in colours.items()
        if name in writers
    ]
    if PADDING_KIND in kinds:
        shown.append(Patch(facecolor=_PADDING, hatch="////", label="padding", **edge))
    if NOTHING_KIND in kinds:
        shown.append(Patch(facecolor="white", label="never written", **edge))
    if kinds - {TOKEN_KIND, PADDING_KIND, NOTHING_KIND}:
        shown.append(Patch(facecolor=_UNKNOWN, label="not known", **edge))
    if scene.reads:
        label = style.words(f"read for {finding.request_id}")
        shown.append(Line2D([], [], color="black", linewidth=2.2, label=label))
    if finding.slot is not None:
        shown.append(
            Patch(
                fill=False, edgecolor=style.VERMILLION, linewidth=2, label="the slot of the finding"
            )
        )
    if any(slot.tainted for slot in slots):
        shown.append(
            Line2D([], [], color="black", marker="o", markersize=3, linestyle="none",
                   label="computed from wrong data")
        )  # fmt: skip
    return shown


def _write(figure: Figure, lines: Sequence[_Line], top: float) -> None:
    """Write lines into a figure from `top` (a share of its height) downwards."""
    step = _STEP / figure.get_figheight()
    for number, (line, size, colour) in enumerate(lines):
        figure.text(
            0.012,
            top - number * step,
            style.words(line),
            va="top",
            ha="left",
            fontsize=size,
            color=colour,
        )


def _in_words(finding: Finding) -> Figure:
    lines = _heading(finding)
    figure = style.new_figure(_WIDTH, _STEP * (len(lines) + 1))
    figure.set_layout_engine("none")
    _write(figure, lines, 0.95)
    return figure
