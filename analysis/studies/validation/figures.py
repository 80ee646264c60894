"""Figures of staged validations and of soak tests."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.plots import style
from analysis.studies.validation.plan import Settings
from analysis.studies.validation.result import Isolated, Level, StagedValidation

COLOURS = {
    "clean": style.GREEN,
    "failed": style.VERMILLION,
    "undecided": style.YELLOW,
    "void": style.PURPLE,
    "not begun": "#E6E6E6",
}
SIGNS = {"clean": "✓", "failed": "✗", "undecided": "?", "void": "∅", "not begun": ""}
_INKS = {**COLOURS, "undecided": "#8A7A00", "not begun": style.GREY}
"""For lines, which yellow and light grey are too pale for."""
_MIB, _LEAST = 2**20, 0.001
_NAMES, _TITLE = 44, 92

Step = Isolated | Level | None


def validation_figure(validation: StagedValidation) -> Figure:
    """Draw one staged validation, the lowest level at the bottom.

    Left, on a log axis: failure rate and its one-sided upper bound for each level, against the rate
    that must have shown; a square is the bound on engines with a failure. Right: the counts.
    """
    steps = _steps(validation)
    figure = style.new_figure(9.0, 1.9 + 0.62 * len(steps))
    axes, words = figure.subplots(1, 2, width_ratios=[1.0, 1.05], sharey=True)
    names = []
    for place, (number, step) in enumerate(steps.items()):
        verdict = _verdict(step)
        name = step.name if isinstance(step, Level) else f"{number} at once"
        names.append(f"{name if number else 'cache alone'}  {SIGNS[verdict] or ' '}")
        axes.axhspan(place - 0.42, place + 0.42, color=COLOURS[verdict], alpha=0.13, linewidth=0)
        if isinstance(step, Level):
            _interval(axes, place, step)
        words.text(0, place, _counts(step), va="center", fontsize=style.SMALL, linespacing=1.35)
    axes.axvline(validation.settings.rate, color=style.BLACK, linewidth=1.1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, 1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_yticks(range(len(steps)), names)
    axes.set_ylim(-0.6, len(steps) - 0.4)
    words.set_axis_off()
    mixed = any(len(level.workloads) > 1 for level in validation.results)
    label = f"one-sided upper bounds, {100 * validation.settings.confidence:g}%"
    label += f"{', of the mix of workloads' if mixed else ''}"
    style.dress(axes, "", f"{label}\n(line: requests, if independent; square: engines)", "")
    axes.grid(visible=False)
    _title(figure, f"{validation.name}: {validation.verdict}", _TITLE, style.TITLE)
    target = f"{100 * validation.settings.rate:g}%, which must have shown"
    line = Line2D([], [], color=style.BLACK, linestyle="--", linewidth=1.1, label=target)
    style.legend_below(figure, [*_patches(steps.values()), line], most=6)
    return figure


def validations_figure(validations: Sequence[StagedValidation]) -> Figure:
    """Draw several staged validations: a row each, a box for each level.

    A box has the sign of its verdict and failed of accepted requests; R marks broken rules, L
    leaked pages.
    """
    if not validations:
        return style.nothing_to_draw("No validation was run.")
    levels = sorted({number for one in validations for number in _steps(one)})
    rows = [_row_name(one.settings) for one in validations]
    height = sum(0.24 + 0.2 * max(2, name.count("\n") + 1) for name in rows)
    figure = style.new_figure(9.0, 1.3 + height)
    axes = figure.add_subplot()
    for row, one in enumerate(validations):
        for number, step in _steps(one).items():
            _box(axes, row, levels.index(number), step)
    axes.set_xticks(range(len(levels)), ["cache\nalone" if n == 0 else str(n) for n in levels])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlim(-0.55, len(levels) - 0.45)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    style.dress(axes, "Highest clean level of each set of treatments", "concurrent requests", "")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    begun = [step for one in validations for step in _steps(one).values() if step is not None]
    key = Patch(color="none", label="k/n: failed of accepted; R: rules, L: leaked pages")
    style.legend_below(figure, [*_patches(begun), key], most=6)
    return figure


def soak_figure(frame: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the iterations of a soak test: `Soak.frame`, a line for each level.

    Top: median and longest latency of each iteration, with a cross where a request failed; then
    resident memory, and pages neither free nor cached with no request running.
    """
    if frame.empty:
        return style.nothing_to_draw("No iteration was finished.")
    figure = style.new_figure(8.2, 7.0)
    latency, memory, leaked = figure.subplots(3, 1, sharex=True)
    longest = frame["latency_max"].max() if frame["latency_max"].notna().any() else 1.0
    for number, (level, own) in enumerate(frame.sort_values("iteration").groupby("level")):
        colour = style.colour(number)
        look = {"color": colour, "linewidth": 1.2, "marker": style.marker(number), "markersize": 4}
        times = own["t_s"]
        latency.plot(times, own["latency_p50"], label=f"{level} at once", **look)
        latency.vlines(times, own["latency_p50"], own["latency_max"], color=colour, linewidth=0.7)
        bad = own[own["failed"] > 0]
        # Without an answer there is no latency: the cross is drawn at the longest.
        height = bad["latency_max"].fillna(longest)
        latency.plot(bad["t_s"], height, "x", color=style.BLACK, markersize=7)
        memory.plot(times, own["rss_bytes"] / _MIB, **look)
        leaked.plot(times, own["leaked"], **look)
    latency.set_yscale("log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_minor_formatter(NullFormatter())
    latency.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    most = max(1.0, 1.08 * frame["leaked"].max())
    leaked.set_ylim(-0.06 * most, most)
    leaked.yaxis.get_major_locator().set_params(integer=True)
    style.dress(latency, "Latency: median, and up to the longest", "", "seconds (log)")
    style.dress(memory, "Resident memory of the engine's process", "", "MiB")
    style.dress(leaked, "Pages neither free nor cached with no request running",
                "time since each level's engine was ready (s)", "pages")  # fmt: skip
    handles, _ = latency.get_legend_handles_labels()
    if (frame["failed"] > 0).any():
        cross = Line2D(
            [], [], color=style.BLACK, marker="x", linestyle="", label="a request failed"
        )
        handles.append(cross)
    style.legend_below(figure, handles, most=len(handles))
    _title(figure, title or "Soak test", 78, style.TITLE + 1)
    return figure


def _steps(validation: StagedValidation) -> dict[int, Step]:
    """Return the results by level, 0 for the cache alone; None for levels that were not run."""
    steps: dict[int, Step] = {0: validation.isolated} if validation.isolated else {}
    steps |= dict.fromkeys(validation.settings.levels)
    return steps | {level.concurrency: level for level in validation.results}


def _verdict(step: Step) -> str:
    return "not begun" if step is None else step.verdict


def _interval(axes: Axes, place: int, level: Level) -> None:
    colour = _INKS[level.verdict]
    rate = level.failed / level.accepted if level.accepted else 0.0
    axes.plot([max(rate, _LEAST), level.upper], [place, place], linewidth=2.2, color=colour)
    axes.plot([level.upper], [place], marker="|", markersize=13, markeredgewidth=2.2, color=colour)
    bound = level.upper_of_engines
    axes.plot([bound], [place], marker="s", markersize=5.5, fillstyle="none", color=colour)
    if rate:
        axes.plot([rate], [place], marker="o", markersize=6.5, color=colour)


def _counts(step: Step) -> str:
    if step is None:
        return "not begun"
    if isinstance(step, Isolated):
        if step.ok is None:
            return textwrap.fill(step.problem, 62)
        all_ = "all" if step.complete else "not all"
        fail = f"{len(step.failures)} can fail on its threads" if step.failures else "none fails"
        return f"{step.interleavings:,} interleavings ({all_} there are), {fail}"
    broken = ", ".join(dict.fromkeys(group.rule for group in step.findings)) or "none"
    first = [f"{step.failed} of {step.accepted} failed ({step.needed} needed)"]
    first += [f"{step.retries} retries"] if step.retries else []
    first += [f"{step.rejected} rejected"] if step.rejected else []
    second = [textwrap.shorten(f"broken rules: {broken}", 44, placeholder=" ...")]
    second.append(f"{step.leaked} pages leaked")
    if step.peak_rss_bytes:
        second.append(f"{step.peak_rss_bytes / _MIB:.0f} MiB")
    return f"{'; '.join(first)}\n{'; '.join(second)}"


def _box(axes: Axes, row: int, column: int, step: Step) -> None:
    verdict = _verdict(step)
    corner = (column - 0.46, row - 0.42)
    colour = COLOURS[verdict]
    axes.add_patch(Rectangle(corner, 0.92, 0.84, alpha=0.4, linewidth=0, facecolor=colour))
    lines = [SIGNS[verdict]]
    if isinstance(step, Level):
        letters = " R" * bool(step.findings) + " L" * bool(step.leaked)
        lines.append(f"{step.failed}/{step.accepted}{letters}")
    elif step is not None and step.failures:
        lines.append(f"{len(step.failures)} fail")
    axes.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=style.SMALL)


def _row_name(settings: Settings) -> str:
    names = " + ".join(settings.treatments) or "no treatment"
    if len(settings.treatments) > 3:
        names = f"all {len(settings.treatments)}: {names}"
    lines = textwrap.wrap(names, _NAMES, break_on_hyphens=False)
    if len(lines) > 3:
        lines = [*lines[:2], f"{lines[2][: _NAMES - 4]} ..."]
    return "\n".join([f"{settings.release}, {settings.prefix_sharing}", *lines])


def _patches(steps: Iterable[Step]) -> list[Artist]:
    present = {_verdict(step) for step in steps}
    return [
        Patch(color=colour, alpha=0.5, label=f"{SIGNS[name]} {name}")
        for name, colour in COLOURS.items()
        if name in present
    ]


def _title(figure: Figure, text: str, width: int, size: float) -> None:
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), fontsize=size, x=0.01, ha="left")
