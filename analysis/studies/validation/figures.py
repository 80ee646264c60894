"""Ladders of validation: how far each came, and what its rungs showed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter

from analysis.plots import style
from analysis.studies.validation.result import Isolated, Ladder, Rung

COLOURS = {
    "clean": style.GREEN,
    "failed": style.VERMILLION,
    "undecided": style.YELLOW,
    "void": style.PURPLE,
    "not begun": "#E6E6E6",
}
SIGNS = {"clean": "✓", "failed": "✗", "undecided": "?", "void": "∅", "not begun": ""}
_MIB, _LEAST = 2**20, 0.001
_NAMES, _TITLE = 44, 92


def ladder_figure(climbed: Ladder) -> Figure:
    """Draw one ladder, its lowest rung at the bottom.

    For each rung of concurrent requests, the failure rate with its one-sided upper bound (log
    axis), against the rate that must have shown, and the bound of engines with anything wrong, for
    requests are not independent; beside it in words what else was found.
    """
    levels = climbed.levels
    steps: list[Isolated | Rung | None] = [climbed.isolated] if climbed.isolated else []
    own = {rung.level: rung for rung in climbed.rungs}
    steps += [own.get(level) for level in levels]
    names = ["cache alone"] * (climbed.isolated is not None) + [
        own[n].name if n in own else f"{n} at once" for n in levels
    ]
    figure = style.new_figure(9.0, 1.9 + 0.62 * len(steps))
    axes, words = figure.subplots(1, 2, width_ratios=[1.0, 1.05], sharey=True)
    for place, step in enumerate(steps):
        verdict = "not begun" if step is None else step.verdict
        axes.axhspan(place - 0.42, place + 0.42, color=COLOURS[verdict], alpha=0.13, linewidth=0)
        names[place] = f"{names[place]}  {SIGNS[verdict] or ' '}"
        if isinstance(step, Rung):
            _interval(axes, place, step)
        words.text(0, place, _said(step), va="center", fontsize=style.SMALL, linespacing=1.35)
    axes.axvline(climbed.rate, color=style.BLACK, linewidth=1.1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, 1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_yticks(range(len(steps)), names)
    axes.set_ylim(-0.6, len(steps) - 0.4)
    words.set_axis_off()
    sure = f"{100 * climbed.confidence:g}%"
    mixed = any(len(rung.workloads) > 1 for rung in climbed.rungs)
    label = f"one-sided upper bounds, {sure}{', of the mix of workloads' if mixed else ''}"
    label += "\n(line: requests, if independent; square: engines)"
    style.dress(axes, "", label, "")
    axes.grid(visible=False)
    _title(figure, f"{climbed.name}: {climbed.verdict}")
    handles: list[Artist] = [Patch(color=COLOURS[name], alpha=0.5, label=f"{SIGNS[name]} {name}")
               for name in _present(steps)]  # fmt: skip
    handles.append(Line2D([], [], color=style.BLACK, linestyle="--", linewidth=1.1,
                          label=f"{100 * climbed.rate:g}%, which must have shown"))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles),
                  fontsize=style.SMALL, frameon=False)  # fmt: skip
    return figure


def ladders_figure(climbed: Sequence[Ladder], title: str | None = None) -> Figure:
    """Draw how far each of several ladders came: a row a ladder, a box a rung.

    A box has the sign of its verdict and, below, failed of accepted requests; what broke without
    a failure is named by a letter: R rules, L pages lost.
    """
    if not climbed:
        return style.nothing_to_draw("No ladder was climbed.")
    levels = sorted({0, *(level for one in climbed for level in one.levels)})
    if all(one.isolated is None for one in climbed):
        levels.remove(0)
    rows = [_row_name(one) for one in climbed]
    height = sum(0.24 + 0.2 * max(2, name.count("\n") + 1) for name in rows)
    figure = style.new_figure(9.0, 1.3 + height)
    axes = figure.add_subplot()
    for row, one in enumerate(climbed):
        own: dict[int, Isolated | Rung] = {rung.level: rung for rung in one.rungs}
        if one.isolated is not None:
            own[0] = one.isolated
        for column, level in enumerate(levels):
            if level not in one.levels and level not in own:
                continue
            _box(axes, row, column, own.get(level))
    axes.set_xticks(range(len(levels)), ["cache\nalone" if n == 0 else str(n) for n in levels])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlim(-0.55, len(levels) - 0.45)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    style.dress(axes, title or "How far each set of treatments came", "concurrent requests", "")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    kinds = _present([step for one in climbed for step in (one.isolated, *one.rungs)])
    handles = [Patch(color=COLOURS[name], alpha=0.5, label=f"{SIGNS[name]} {name}") for name in
               kinds if name != "not begun"]  # fmt: skip
    handles.append(Patch(color="none", label="k/n: failed of accepted; R: rules, L: pages lost"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles),
                  fontsize=style.SMALL, frameon=False)  # fmt: skip
    return figure


def _interval(axes: Axes, place: int, rung: Rung) -> None:
    colour = _ink(rung.verdict)
    rate = rung.failed / rung.accepted if rung.accepted else 0.0
    axes.plot([max(rate, _LEAST), rung.upper], [place, place], color=colour, linewidth=2.2)
    axes.plot([rung.upper], [place], marker="|", markersize=13, markeredgewidth=2.2, color=colour)
    bound = rung.upper_of_engines
    axes.plot([bound], [place], marker="s", markersize=5.5, color=colour, fillstyle="none")
    if rate:
        axes.plot([rate], [place], marker="o", markersize=6.5, color=colour)


def _said(step: Isolated | Rung | None) -> str:
    if step is None:
        return "not begun"
    if isinstance(step, Isolated):
        if step.ok is None:
            return textwrap.fill(step.problem, 62)
        all_ = "all" if step.complete else "not all"
        fail = f"{len(step.failures)} can fail on its threads" if step.failures else "none fails"
        return f"{step.interleavings:,} interleavings ({all_} there are), {fail}"
    broken = ", ".join(dict.fromkeys(found.rule for found in step.findings)) or "none"
    first = [f"{step.failed} of {step.accepted} failed ({step.needed} needed)"]
    first += [f"{step.refusals} refusals"] if step.refusals else []
    first += [f"{step.rejected} never taken"] if step.rejected else []
    second = [textwrap.shorten(f"broken rules: {broken}", 44, placeholder=" ..."),
              f"{step.leaked} pages lost"]  # fmt: skip
    if step.peak_rss_bytes:
        second.append(f"{step.peak_rss_bytes / _MIB:.0f} MiB")
    return f"{'; '.join(first)}\n{'; '.join(second)}"


def _box(axes: Axes, row: int, column: int, step: Isolated | Rung | None) -> None:
    verdict = "not begun" if step is None else step.verdict
    axes.add_patch(Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, alpha=0.4, linewidth=0,
                             facecolor=COLOURS[verdict]))  # fmt: skip
    if step is None:
        return
    lines = [SIGNS[verdict]]
    if isinstance(step, Rung):
        letters = " R" * bool(step.findings) + " L" * bool(step.leaked)
        lines.append(f"{step.failed}/{step.accepted}{letters}")
    elif step.failures:
        lines.append(f"{len(step.failures)} fail")
    axes.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=style.SMALL)


def _row_name(one: Ladder) -> str:
    names = " + ".join(one.treatments) or "no treatment"
    if len(one.treatments) > 3:
        names = f"all {len(one.treatments)}: {names}"
    lines = textwrap.wrap(names, _NAMES, break_on_hyphens=False)
    if len(lines) > 3:
        lines = [*lines[:2], f"{lines[2][: _NAMES - 4]} ..."]
    return "\n".join([f"{one.release}, {one.prefix_sharing}", *lines])


def _present(steps: Sequence[Isolated | Rung | None]) -> list[str]:
    found = {"not begun" if step is None else step.verdict for step in steps}
    return [name for name in COLOURS if name in found]


def _ink(verdict: str) -> str:
    # Yellow and light grey are no colours for lines on white.
    return {"undecided": "#8A7A00", "not begun": style.GREY}.get(verdict, COLOURS[verdict])


def _title(figure: Figure, text: str) -> None:
    lines = textwrap.wrap(text, _TITLE, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), fontsize=style.TITLE, x=0.01, ha="left")
