"""What all figures share: colours, sizes and the concurrency axis.

Colours are those of M. Okabe and K. Ito, Color Universal Design (2008), told apart with any common
form of colour blindness. Figures are made without pyplot, so that nothing is global and none leak.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from analysis.runs.tables import treated

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
    "rejected": "#FFFFFF",
}
STATE_COLOURS = {"free": "#EFEFEF", "live": SKY, "cached": "#E9CF58", "leaked": VERMILLION}
"""Of a page, by its state, in every figure and widget. No request has one of these."""
REQUEST_COLOURS = (BLUE, BLACK, GREEN, PURPLE, ORANGE, "#7A1B4B", "#6B4A00", "#6A5ACD")
"""Of requests, where pages are shown beside them or held by them."""
GREY = "#5A5A5A"
TEXT, SMALL, TITLE = 10.0, 9.0, 11.5


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
    """Return what a panel of this width in inches is called, in lines that fit over it."""
    return textwrap.fill(series_label(key), int(width * 9))


def legend_below(figure: Figure, handles: Sequence[Any] | None = None, *, most: int) -> None:
    """Put a legend below the axes, in as many columns, up to `most`, as the figure is wide.

    `handles` are all that have a label on the figure's axes, if none are given.
    """
    if handles is None:
        handles = [one for axes in figure.axes for one in axes.get_legend_handles_labels()[0]]
    for columns in range(min(most, len(handles)), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            fontsize=SMALL,
            frameon=False,
        )
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        if columns > 1:
            legend.remove()


def concurrency_axis(axes: Axes, concurrency: pd.Series[Any], numbers: pd.Series[Any]) -> None:
    """Make x a log2 axis with a tick at each concurrency, and below it the requests behind it.

    `concurrency` and `numbers` have one value for each point that is drawn.
    """
    counts: dict[int, list[int]] = {}
    for level, number in zip(concurrency, numbers, strict=True):
        counts.setdefault(int(level), []).append(int(number))
    levels = sorted(counts)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(levels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FixedFormatter([tick_label(level, counts[level]) for level in levels])
    )
    axes.set_xlim(levels[0] / 1.45, levels[-1] * 1.45)


def tick_label(level: int, numbers: Sequence[int]) -> str:
    """Return the label of one concurrency, with the number of requests behind it below."""
    low, high = min(numbers), max(numbers)
    return f"{level}\nn = {low}" if low == high else f"{level}\nn = {low} to {high}"


def percent_axis(axes: Axes) -> None:
    """Show shares of 1 as percent from 0 to 100, with room for a marker at either end."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def dodge(index: int, count: int) -> float:
    """Return the factor that moves series `index` of `count` aside on a log axis."""
    return float(2 ** (0.14 * (index - (count - 1) / 2)))


def series_label(key: Mapping[str, Any]) -> str:
    """Return how a series is called in a legend, such as "shortfin 3.1.0, trie, 24 pages"."""
    forms = {
        "release": "shortfin {}",
        "prefix_sharing": "prefix sharing {}",
        "page_count": "{} pages",
        "workload": "workload {}",
        "device": "{}",
        "treatments": "{}",
    }
    return ", ".join(
        forms.get(name, name + " {}").format(
            treated(value) if name == "treatments" else words(str(value))
        )
        for name, value in key.items()
    )


def all_series(frame: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the distinct values of the columns, sorted: one dict for every series of a figure."""
    distinct = frame[list(columns)].drop_duplicates().sort_values(list(columns))
    return [{str(k): v for k, v in row.items()} for row in distinct.to_dict("records")]


def rows_of(frame: pd.DataFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of one series."""
    mask = pd.Series(True, index=frame.index)
    for name, value in key.items():
        mask &= frame[name] == value
    return frame[mask]


def words(text: str) -> str:
    """Return a text of others (a request's id, a file's name) for matplotlib to draw as it is.

    A dollar sign does not begin mathematics then, what the font lacks or cannot be drawn is
    escaped, and a label keeps its place in a legend.
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
    """Return a figure that says in words why it is empty."""
    figure = new_figure(7.2, max(1.2, 0.25 * (message.count("\n") + 3)))
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=TEXT, color=GREY)
    return figure


def png_of(figure: Figure, dpi: int = 160) -> bytes:
    """Return a figure as a PNG image."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return target.getvalue()
