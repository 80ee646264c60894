"""Colours, sizes, axes and legends that all figures share.

The colours are those of M. Okabe and K. Ito, Color Universal Design (2008), which remain distinct
with any common form of colour blindness. Figures are made without pyplot, so there is no global
state and no figure leaks.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from analysis.stats.configurations import setting_name

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
SERIES_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
OUTCOME_COLOURS = {
    "wrong": VERMILLION,
    "empty": ORANGE,
    "error": PURPLE,
    "timeout": YELLOW,
    "engine_died": "#404040",
    "ok": "#A6D0EA",
    "cancelled": "#DADADA",
    "rejected": "#FFFFFF",
}
WRONG_LATER = "#F4B183"
"""Wrong answers whose beginning is right."""
STATE_COLOURS = {"free": "#EFEFEF", "live": SKY, "cached": "#E9CF58", "leaked": VERMILLION}
"""Colours of page states in every figure and widget. No request has one of these."""
WITHHELD_COLOUR = "#9A9A9A"
"""For pages that a scenario keeps out of the pool, which are in none of the states."""
REQUEST_COLOURS = (BLUE, BLACK, GREEN, PURPLE, ORANGE, "#7A1B4B", "#6B4A00", "#6A5ACD")
"""Colours of requests in figures that show page states, too."""
GREY = "#5A5A5A"
_FITS = 0.98
"""Largest share of a figure's width that a legend takes; text is wider at some resolutions."""
TEXT, SMALL, TITLE = 10.0, 9.0, 11.5
LEAST = 7.5
"""Size of the smallest text of a figure, in points: 9.4 pixels where a page shows it smallest."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, laid out so that nothing is clipped."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes their title, labels and the plain look of this project."""
    axes.set_title(title, fontsize=TITLE, loc="left")
    axes.set_xlabel(x_label, fontsize=TEXT)
    axes.set_ylabel(y_label, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)


def panel_title(key: Mapping[str, Any], width: float) -> str:
    """Return the title of a panel of this width in inches, wrapped."""
    return textwrap.fill(series_label(key), int(width * 9))


def legend_below(
    figure: Figure, handles: Sequence[Any] | None = None, *, most: int, **looks: Any
) -> None:
    """Put a legend below the axes, in at most `most` columns and no wider than the figure.

    Without `handles` it lists all labelled artists of the figure's axes. Labels that are too long
    for one column are wrapped, and the figure becomes higher by their further lines. `looks` are
    arguments of `Figure.legend`.
    """
    if handles is None:
        handles = [one for axes in figure.axes for one in axes.get_legend_handles_labels()[0]]
    if not handles:
        return
    labels = [str(handle.get_label()) for handle in handles]
    looks = {
        "loc": "outside lower center", "fontsize": SMALL, "title_fontsize": SMALL,
        "frameon": False, **looks,
    }  # fmt: skip
    excess = 1.0
    for columns in range(min(most, len(handles)), 0, -1):
        legend = figure.legend(handles, labels, ncols=columns, **looks)
        excess = legend.get_window_extent().width / figure.bbox.width
        if excess <= _FITS:
            return
        legend.remove()
    # The margin is for the handle, and for letters that are wider than others.
    room = max(int(max(map(len, labels)) / excess * 0.9) - 4, 12)
    wrapped = [textwrap.fill(label, room) for label in labels]
    further = sum(label.count("\n") for label in wrapped)
    figure.set_figheight(figure.get_figheight() + further * SMALL * 1.2 / 72)
    figure.legend(handles, wrapped, ncols=1, **looks)


def concurrency_axis(axes: Axes, concurrency: pd.Series[Any], numbers: pd.Series[Any]) -> None:
    """Make x a log2 axis with a tick and the number of requests at each concurrency.

    `concurrency` and `numbers` have one value for each point that is drawn.
    """
    counts: dict[int, list[int]] = {}
    for level, number in zip(concurrency, numbers, strict=True):
        counts.setdefault(int(level), []).append(int(number))
    level_axis(axes, {level: tick_label(level, counts[level]) for level in sorted(counts)})


def level_axis(axes: Axes, labels: Mapping[int, str]) -> None:
    """Make x a log2 axis with a labelled tick at each level, in ascending order."""
    levels = list(labels)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(levels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter(list(labels.values())))
    axes.set_xlim(levels[0] / 1.45, levels[-1] * 1.45)


def tick_label(level: int, numbers: Sequence[int]) -> str:
    """Return the label of one concurrency, with its number of requests below."""
    low, high = min(numbers), max(numbers)
    return f"{level}\nn = {low}" if low == high else f"{level}\nn = {low} to {high}"


def percent_axis(axes: Axes, along: Literal["x", "y"] = "y") -> None:
    """Show shares of 1 as percent from 0 to 100 along x or y, with a margin at both ends."""
    axis = axes.yaxis if along == "y" else axes.xaxis
    limits = axes.set_ylim if along == "y" else axes.set_xlim
    limits(-0.03, 1.03)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def grid_along_x(axes: Axes) -> None:
    """Replace the horizontal grid lines by vertical ones, for horizontal bars and intervals."""
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#E3E3E3", linewidth=0.8)


def dodge(index: int, count: int) -> float:
    """Return the factor that moves series `index` of `count` aside on a log axis.

    All series together take at most seven tenths of the way to the next power of two.
    """
    step = min(0.14, 0.7 / max(count - 1, 1))
    return float(2 ** (step * (index - (count - 1) / 2)))


def colour(index: int) -> str:
    """Return the colour of a series."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]


def marker(index: int) -> str:
    """Return the marker of a series; series of the same colour have different ones."""
    return SERIES_MARKERS[(index + index // len(SERIES_COLOURS)) % len(SERIES_MARKERS)]


def distances(rows: pd.DataFrame, y: str, low: str, high: str) -> list[pd.Series[float]]:
    """Return how far an interval reaches below and above its value, for `errorbar`."""
    return [(rows[y] - rows[low]).clip(lower=0), (rows[high] - rows[y]).clip(lower=0)]


def interval_line(
    axes: Axes, rows: pd.DataFrame, index: int, count: int, label: str,
    y: str = "rate", low: str = "low", high: str = "high",
) -> None:  # fmt: skip
    """Draw series `index` of `count` against concurrency, with an interval at each point."""
    rows = rows.sort_values("concurrency")
    axes.errorbar(
        rows["concurrency"] * dodge(index, count), rows[y], yerr=distances(rows, y, low, high),
        color=colour(index), marker=marker(index), markersize=6.5, linewidth=1.3, elinewidth=1.6,
        capsize=4, label=label,
    )  # fmt: skip


def series_label(key: Mapping[str, Any]) -> str:
    """Return the name of a series in a legend."""
    return words(setting_name(key))


def request_colours(
    requests: Sequence[str], palette: Sequence[str] = SERIES_COLOURS
) -> dict[str, str]:
    """Return a colour for each request, in turn."""
    return {name: palette[n % len(palette)] for n, name in enumerate(requests)}


def request_patches(colours: Mapping[str, str]) -> list[Patch]:
    """Return legend entries of the first 12 requests, and one that counts the others."""
    patches = [Patch(color=c, label=short_name(name)) for name, c in list(colours.items())[:12]]
    if len(colours) > 12:
        patches.append(Patch(color="white", label=f"and {len(colours) - 12} more requests"))
    return patches


def short_name(request_id: str) -> str:
    """Return a request's name cut so that it fits into a legend."""
    cut = request_id if len(request_id) <= 10 else request_id[:6] + "\N{HORIZONTAL ELLIPSIS}"
    return words(cut)


def all_series(frame: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the distinct values of the columns, sorted: one dict for each series."""
    distinct = frame[list(columns)].drop_duplicates().sort_values(list(columns))
    return [{str(k): v for k, v in row.items()} for row in distinct.to_dict("records")]


def rows_of(frame: pd.DataFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of one series."""
    mask = pd.Series(True, index=frame.index)
    for name, value in key.items():
        # A Series compares itself with a tuple element by element.
        mask &= frame[name].map(lambda own, value=value: own == value).astype(bool)
    return frame[mask]


def words(text: str) -> str:
    """Return a text of unknown content (a request's id, a file's name) for matplotlib to draw.

    Dollar signs, characters that the font lacks and a leading underscore are made harmless.
    """
    shown = "".join(
        c if ord(c) in _glyphs() and c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )
    # A legend leaves out what begins with an underscore.
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def nothing_to_draw(message: str) -> Figure:
    """Return a figure that shows only a message."""
    figure = new_figure(7.2, max(1.2, 0.25 * (message.count("\n") + 3)))
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=TEXT, color=GREY)
    return figure


def png_of(figure: Figure, dpi: int = 160) -> bytes:
    """Return a figure as a PNG image."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return target.getvalue()
