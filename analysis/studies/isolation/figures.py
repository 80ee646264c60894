"""A schedule of cache operations: its steps, and the owners of each page after each of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.plots import style

if TYPE_CHECKING:
    from analysis.interleavings import Replay

_COLOURS = tuple(colour for colour in style.REQUEST_COLOURS if colour != style.BLACK)
_UNUSED = {
    "free": (style.STATE_COLOURS["free"], "free"),
    "cached": (style.STATE_COLOURS["cached"], "cached, held by no request"),
    "pending free": (style.STATE_COLOURS["cached"], "cached, pending to be freed"),
    "withheld": (style.WITHHELD_COLOUR, "withheld from the pool"),
    "leaked": (style.STATE_COLOURS["leaked"], "leaked"),
}
"""Colour and label of owners that are no requests."""
_HATCHES = {"pending free": "...."}
_LINE = 96


def interleaving_figure(replay: Replay, rule: str | None = None) -> Figure:
    """Draw a replayed schedule: a lane for each request, and below them every page's owners.

    `rule` is the broken rule that is marked, by default the last step's first one. Two letters in a
    field are two requests that hold the page.
    """
    moments = replay.moments
    if not moments:
        return style.nothing_to_draw("The schedule is empty, so there is nothing to draw.")
    names = list(dict.fromkeys(moment.step.request for moment in moments))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    if rule is None:
        rule = next((v.rule for m in reversed(moments) for v in m.violations), None)
    number, violation = next(
        ((n, v) for n, m in enumerate(moments) for v in m.violations if v.rule == rule),
        (None, None),
    )
    pages = len(replay.first)
    width = max(7.2, 2.2 + 0.72 * len(moments))
    figure = style.new_figure(width, 2.6 + 0.42 * len(names) + 0.24 * pages)
    ratio = [0.42 * len(names) + 0.2, 0.24 * pages]
    lanes, owners = figure.subplots(2, 1, sharex=True, height_ratios=ratio)
    _draw_lanes(lanes, replay, colours, number)
    _draw_owners(owners, replay, colours)
    text = "No rule is broken."
    if number is not None and violation is not None:
        text = f"After step {number + 1}, “{violation.rule}” is broken. {violation.message}"
        for page in violation.pages:
            _box(owners, number, page - 0.5, 1, 1, edgecolor=style.BLACK, linewidth=2.2, zorder=4)
    style.legend_below(figure, _legend(replay, colours), most=4)
    title = [
        f"{replay.scenario}: shortfin {replay.release}, prefix sharing {replay.prefix_sharing}"
    ]
    if replay.treatments:
        title += textwrap.wrap(f"treated with {', '.join(replay.treatments)}", _LINE)
    figure.suptitle("\n".join(title), fontsize=style.TITLE + 1, x=0.01, ha="left")
    shown = "\n".join(textwrap.wrap(text, round(_LINE * width / 7.2)))
    lanes.set_title(shown, fontsize=style.TEXT, loc="left")
    return figure


def _draw_lanes(axes: Axes, replay: Replay, colours: dict[str, str], failing: int | None) -> None:
    names = list(colours)
    for number, moment in enumerate(replay.moments):
        lane = names.index(moment.step.request)
        place = (number + 0.04, lane - 0.36, 0.92, 0.72)
        _box(axes, *place, facecolor=colours[moment.step.request], alpha=0.35, edgecolor="none")
        if number == failing:
            _box(axes, *place, edgecolor=style.BLACK, linewidth=2.2)
        axes.text(
            number + 0.5,
            lane,
            moment.step.operation,
            ha="center",
            va="center",
            fontsize=style.SMALL,
            fontweight="bold" if number == failing else "normal",
        )
    axes.set_yticks(range(len(names)), [f"request {name}" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, len(replay.moments))
    axes.tick_params(labelsize=style.SMALL, length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


def _draw_owners(axes: Axes, replay: Replay, colours: dict[str, str]) -> None:
    before = replay.first
    for number, moment in enumerate(replay.moments):
        for page, owners in enumerate(moment.owners):
            _draw_field(axes, number, page, owners, colours, changed=owners != before[page])
        before = moment.owners
    count, steps = len(replay.first), len(replay.moments)
    every = 1 if count <= 16 else 2
    axes.set_xlim(0, steps)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_yticks(range(0, count, every), [str(page) for page in range(0, count, every)])
    axes.set_xticks([n + 0.5 for n in range(steps)], [str(n + 1) for n in range(steps)])
    axes.set_xlabel("step", fontsize=style.TEXT)
    axes.set_ylabel("page", fontsize=style.TEXT)
    axes.tick_params(labelsize=style.SMALL, length=0)


def _draw_field(
    axes: Axes,
    step: int,
    page: int,
    owners: Sequence[str],
    colours: dict[str, str],
    *,
    changed: bool,
) -> None:
    """Draw the owners of one page after one step, side by side, with letters where it changed."""
    requests = [owner for owner in owners if owner not in _UNUSED]
    parts = [(colours.get(name, style.GREY), 0.6) for name in requests]
    parts = parts or [(_UNUSED[owners[0]][0], 1.0)]
    size = 1 / len(parts)
    for number, (colour, alpha) in enumerate(parts):
        _box(axes, step + number * size, page - 0.5, size, 1, facecolor=colour, alpha=alpha,
             edgecolor="none")  # fmt: skip
    hatch = "////" if requests and "cached" in owners else None
    if not requests:
        hatch = _HATCHES.get(owners[0])
    _box(axes, step, page - 0.5, 1, 1, edgecolor="#8A8A8A", linewidth=0.6, hatch=hatch)
    text = " ".join(requests)
    if requests and "free" in owners:
        text += " free"
    if text and (changed or len(requests) > 1):
        axes.text(
            step + 0.5, page, text, ha="center", va="center", fontsize=style.SMALL - 1, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def _legend(replay: Replay, colours: dict[str, str]) -> list[Patch]:
    fields = [owners for moment in replay.moments for owners in moment.owners]
    handles = [
        Patch(facecolor=colour, alpha=0.6, label=f"held by {name}")
        for name, colour in colours.items()
    ]
    handles += [
        Patch(facecolor=colour, edgecolor="#8A8A8A", label=label, hatch=_HATCHES.get(kind))
        for kind, (colour, label) in _UNUSED.items()
        if any(kind in owners and set(owners) <= _UNUSED.keys() for owners in fields)
    ]
    if any("cached" in owners and len(owners) > 1 for owners in fields):
        label = "held by a request, and cached"
        handles.append(Patch(facecolor="white", edgecolor="#777777", hatch="////", label=label))
    return handles


def _box(axes: Axes, x: float, y: float, width: float, height: float, **look: Any) -> None:
    axes.add_patch(Rectangle((x, y), width, height, fill="facecolor" in look, **look))
