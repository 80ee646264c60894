"""A schedule of cache operations: who did what when, and whose each page was."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.plots import style

if TYPE_CHECKING:
    from analysis.interleavings import Replay

_COLOURS = tuple(colour for colour in style.REQUEST_COLOURS if colour != style.BLACK)
_PLAIN = {"free": style.STATE_COLOURS["free"], "cached": style.STATE_COLOURS["cached"],
          "set aside": "#E8DCC8", "kept": "#C9C9C9",
          "lost": style.STATE_COLOURS["leaked"]}  # fmt: skip
_MEANINGS = {"free": "free", "cached": "cached, held by no request", "set aside": "set aside",
             "kept": "kept away", "lost": "leaked"}  # fmt: skip
_LINE = 96


def interleaving_figure(replay: Replay, rule: str | None = None) -> Figure:
    """Draw a replayed schedule: a lane for each request, and below them every page's owners.

    `rule` is the broken rule that is marked, by default the last step's first one. A trial with two
    letters is a page in two requests' hands.
    """
    moments = replay.moments
    if not moments:
        return style.nothing_to_draw("The schedule is empty, so there is nothing to draw.")
    names = list(dict.fromkeys(moment.step.request for moment in moments))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    told = _told(replay, rule)
    pages = len(replay.first)
    width = max(7.2, 2.2 + 0.72 * len(moments))
    figure = style.new_figure(width, 2.6 + 0.42 * len(names) + 0.24 * pages)
    ratio = [0.42 * len(names) + 0.2, 0.24 * pages]
    lanes, owners = figure.subplots(2, 1, sharex=True, height_ratios=ratio)
    _lanes(lanes, replay, names, colours, None if told is None else told[0])
    handles = _owners(owners, replay, colours, told)
    style.legend_below(figure, handles, most=4)
    what = f"shortfin {replay.release}, prefix sharing {replay.prefix_sharing}"
    lines = [f"{replay.scenario}: {what}"]
    if replay.treatments:
        lines += textwrap.wrap(f"treated with {', '.join(replay.treatments)}", _LINE)
    figure.suptitle("\n".join(lines), fontsize=style.TITLE + 1, x=0.01, ha="left")
    text = "No rule is broken."
    if told is not None:
        number, name, message, _ = told
        text = f"After step {number + 1}, “{name}” is broken. {message}"
    shown = "\n".join(textwrap.wrap(text, round(_LINE * width / 7.2)))
    lanes.set_title(shown, fontsize=style.TEXT, loc="left")
    return figure


def _told(replay: Replay, rule: str | None) -> tuple[int, str, str, tuple[int, ...]] | None:
    if rule is None:
        rule = next((b.rule for m in reversed(replay.moments) for b in m.broken), None)
    for number, moment in enumerate(replay.moments):
        for broken in moment.broken:
            if broken.rule == rule:
                return number, broken.rule, broken.message, broken.pages
    return None


def _lanes(
    axes: Axes, replay: Replay, names: Sequence[str], colours: dict[str, str], failing: int | None
) -> None:
    for number, moment in enumerate(replay.moments):
        lane = names.index(moment.step.request)
        broken = number == failing
        axes.add_patch(
            Rectangle(
                (number + 0.04, lane - 0.36),
                0.92,
                0.72,
                facecolor=colours[moment.step.request],
                alpha=0.35,
                edgecolor="none",
            )
        )
        if broken:
            axes.add_patch(
                Rectangle(
                    (number + 0.04, lane - 0.36), 0.92, 0.72,
                    fill=False, edgecolor=style.BLACK, linewidth=2.2,
                )
            )  # fmt: skip
        axes.text(
            number + 0.5,
            lane,
            moment.step.operation,
            ha="center",
            va="center",
            fontsize=style.SMALL,
            fontweight="bold" if broken else "normal",
        )
    axes.set_yticks(range(len(names)), [f"request {name}" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, len(replay.moments))
    axes.tick_params(labelsize=style.SMALL, length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


def _owners(
    axes: Axes,
    replay: Replay,
    colours: dict[str, str],
    told: tuple[int, str, str, tuple[int, ...]] | None,
) -> list[Patch]:
    before = replay.first
    kinds: set[str] = set()
    for number, moment in enumerate(replay.moments):
        for page, owners in enumerate(moment.owners):
            _trial(axes, number, page, owners, colours, owners != before[page])
            kinds |= set(owners) if set(owners) <= set(_PLAIN) else set()
        before = moment.owners
    if told is not None:
        for page in told[3]:
            axes.add_patch(
                Rectangle(
                    (told[0], page - 0.5), 1, 1,
                    fill=False, edgecolor=style.BLACK, linewidth=2.2, zorder=4,
                )
            )  # fmt: skip
    count = len(replay.first)
    axes.set_xlim(0, len(replay.moments))
    axes.set_ylim(count - 0.5, -0.5)
    every = 1 if count <= 16 else 2
    axes.set_yticks(range(0, count, every), [str(page) for page in range(0, count, every)])
    axes.set_xticks(
        [n + 0.5 for n in range(len(replay.moments))],
        [str(n + 1) for n in range(len(replay.moments))],
    )
    axes.set_xlabel("step", fontsize=style.TEXT)
    axes.set_ylabel("page", fontsize=style.TEXT)
    axes.tick_params(labelsize=style.SMALL, length=0)
    handles = [
        Patch(facecolor=colours[name], alpha=0.6, label=f"in the hands of {name}")
        for name in colours
    ]
    handles += [
        Patch(facecolor=_PLAIN[kind], edgecolor="#999999", label=_MEANINGS[kind])
        for kind in _PLAIN
        if kind in kinds
    ]
    if any("cached" in o and len(o) > 1 for m in replay.moments for o in m.owners):
        handles.append(
            Patch(
                facecolor="white", edgecolor="#777777", hatch="////", label="in hands, and cached"
            )
        )
    return handles


def _trial(
    axes: Axes, step: int, page: int, owners: Sequence[str], colours: dict[str, str], new: bool
) -> None:
    requests = [owner for owner in owners if owner not in _PLAIN]
    kinds = [owner for owner in owners if owner in _PLAIN]
    parts = [(colours.get(name, style.GREY), 0.6) for name in requests]
    parts = parts or [(_PLAIN[kinds[0]], 1.0)]
    for number, (colour, alpha) in enumerate(parts):
        axes.add_patch(
            Rectangle(
                (step + number / len(parts), page - 0.5),
                1 / len(parts),
                1,
                facecolor=colour,
                alpha=alpha,
                edgecolor="none",
            )
        )
    axes.add_patch(
        Rectangle(
            (step, page - 0.5), 1, 1, fill=False, edgecolor="#8A8A8A", linewidth=0.6,
            hatch="////" if requests and "cached" in kinds else None,
        )
    )  # fmt: skip
    text = " ".join(requests)
    if requests and "free" in kinds:
        text += " free"
    if text and (new or len(requests) > 1):
        axes.text(
            step + 0.5, page, text, ha="center", va="center", fontsize=style.SMALL - 1, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
