"""The lower panels of an explanation: pages by owner, probabilities, and the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis.core.wording import counted
from analysis.diagnosis.cache import Pool
from analysis.diagnosis.explanation import Explanation
from analysis.diagnosis.pages import CACHED, FREE, UNOWNED, PageHistory
from analysis.plots import style
from analysis.plots.style import STATE_COLOURS

_ORDER = ("leaked", "live", "cached", "free")


def draw_pages(
    axes: Axes,
    explained: Explanation,
    pages: Sequence[PageHistory],
    colour: Callable[[str], str],
    marks: Sequence[float],
) -> None:
    """Draw a lane for each page: a bar in the owner's colour, and a line below for each writer.

    `marks` are the events of errors.
    """
    low = explained.begin - max(explained.end, 1)
    for y, history in enumerate(pages):
        for interval in history.owners:
            _interval(
                axes,
                y,
                interval.begin if interval.begin > 0 else low,
                interval.end,
                interval.owners,
                colour,
            )
        writers: dict[str, int] = {}
        for entry in history.entries:
            if entry.kind == "write":
                writer = entry.request_id or "padding"
                level = writers.setdefault(writer, len(writers))
                height = y + 0.24 + 0.09 * min(level, 3)
                shade = style.BLACK if writer == "padding" else colour(writer)
                axes.plot([entry.seq - 0.3, max(entry.until, entry.seq) + 0.3], [height, height],
                          color=shade, linewidth=2.2, solid_capstyle="butt")  # fmt: skip
    labels = [str(history.page) for history in pages]
    axes.set_yticks(range(len(pages)), labels)
    page = None if explained.finding is None else explained.finding.page
    for history, label in zip(pages, axes.get_yticklabels(), strict=True):
        if history.page == page:
            label.set_color(style.VERMILLION)
            label.set_fontweight("bold")
    axes.set_ylim(len(pages) - 0.4, -0.6)
    for seq in marks:
        axes.axvline(seq, color=style.VERMILLION, linewidth=1.1, linestyle="--", zorder=5)
    left_out = len(explained.pages) - len(pages)
    more = f" ({counted(left_out, 'page')} not drawn)" if left_out > 0 else ""
    style.dress(axes, f"Owners and writers of its pages (no bar: in the pool){more}", "", "page")
    axes.grid(visible=False)
    axes.tick_params(axis="y", labelsize=8)


def _interval(
    axes: Axes,
    y: int,
    begin: float,
    end: float,
    owners: Sequence[str],
    colour: Callable[[str], str],
) -> None:
    if owners[0] == FREE:
        return
    look: dict[str, Any] = {"linewidth": 0}
    if owners[0] == CACHED:
        parts = [{**look, "facecolor": STATE_COLOURS["cached"]}]
    elif owners[0] == UNOWNED:
        parts = [{**look, "facecolor": STATE_COLOURS["leaked"]}]
    else:
        parts = [{**look, "facecolor": colour(owner)} for owner in owners[:4]]
    height = 0.5 / len(parts)
    for number, part in enumerate(parts):
        axes.broken_barh([(begin, end - begin)], (y - 0.36 + number * height, height), **part)


def draw_probabilities(axes: Axes, explained: Explanation) -> None:
    """Draw the probabilities of the wrong and the right token, for engine and reference."""
    wrong = explained.divergence
    assert wrong is not None
    invocation = "" if wrong.invocation_id is None else f"\nin invocation {wrong.invocation_id}"
    labels: list[str] = []
    y = 0.0
    ticks = []
    for name, one in (
        (f"the engine{invocation}", wrong.engine),
        ("the reference decoder,\nafter the same tokens", wrong.reference),
    ):
        ticks.append(y + 0.5)
        labels.append(name)
        bars = (
            ("given", wrong.given_text, style.VERMILLION, None if one is None else one.given),
            ("right", wrong.right_text, style.GREEN, None if one is None else one.right),
        )
        for place, (kind, text, shade, value) in enumerate(bars):
            at = y + place
            if one is None:
                words = "not known" if place == 0 else ""
            else:
                axes.barh(at, (value or 0) * 100, height=0.8, color=shade)
                words = f"{style.words(text)} ({kind}): {one.words(value)}"
            inside = value is not None and value > 0.7
            axes.text((value or 0) * 100 + (-1 if inside else 1), at, words, va="center",
                      ha="right" if inside else "left", fontsize=style.SMALL,
                      color="white" if inside else "black")  # fmt: skip
        y += 2.5
    axes.set_yticks(ticks, labels)
    axes.set_ylim(y - 0.9, -0.6)
    axes.set_xlim(0, 100)
    title = f"Token {wrong.token_index} of the answer: its probability"
    style.dress(axes, title, "probability (%)", "")
    axes.grid(visible=False)
    axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)


def draw_pool(axes: Axes, explained: Explanation, pool: Sequence[Pool]) -> None:
    """Draw the pages by state, from the first snapshot to the request's end."""
    places = [p.seq for p in pool]
    counts = [[getattr(p, state) for p in pool] for state in _ORDER]
    axes.stackplot(places, counts, step="post", colors=[STATE_COLOURS[s] for s in _ORDER],
                   linewidth=0)  # fmt: skip
    last, total = pool[-1], sum(getattr(pool[-1], state) for state in _ORDER)
    axes.axvline(explained.begin, color=style.BLACK, linewidth=1.2, linestyle=":")
    right = explained.begin > (places[0] + places[-1]) / 2
    sent = style.words(f"{explained.request_id} is submitted")
    axes.annotate(sent, (explained.begin, total * 1.07), (-4 if right else 4, 0),
                  textcoords="offset points", ha="right" if right else "left", va="center",
                  fontsize=style.SMALL)  # fmt: skip
    axes.set_xlim(places[0], max(places[-1], places[0] + 1))
    axes.set_ylim(0, total * 1.14)
    handles = [
        axes.fill_between([], [], [], color=STATE_COLOURS[state],
                          label=f"{state}, {getattr(last, state)} at the end")
        for state in reversed(_ORDER)
    ]  # fmt: skip
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=4,
                fontsize=style.SMALL, frameon=False)  # fmt: skip
    style.dress(axes, "Pages of the pool by state", "event number", "pages")
