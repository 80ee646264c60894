"""The figure of an explanation: batches, pages, and the first wrong token or the pool.

The x axis of the upper two panels is the event number, because time would mostly show waiting.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.diagnosis.explanation import Explanation
from analysis.diagnosis.figure_parts import draw_pages, draw_pool, draw_probabilities
from analysis.diagnosis.pages import CACHED, FREE, UNOWNED
from analysis.plots import style
from analysis.sanitizer.findings import WRONG_DATA

OWN = style.BLUE
PEERS = (*(c for c in style.REQUEST_COLOURS if c not in (OWN, style.BLACK)), style.BLACK)
"""Colours of the request and its batch peers; vermillion marks errors."""
OTHERS = "#9A9A9A"
_LEAST, _PAGES = 24, 14
"""Fewest events that the axis spans, and most pages that are drawn."""
_WIDTH, _STEP = 10.0, 0.6
"""Sizes in inches, and the height of a mark's label in lanes."""


def explanation_figure(explained: Explanation) -> Figure:
    """Draw an explanation: invocations of the batch peers, owners of the pages, and errors.

    The lower panel shows the probabilities of the first wrong token and the right token, computed
    by the engine and the reference decoder. Without a wrong token it shows the pages by state.
    """
    lanes = _lanes(explained)
    pages = [history for history in explained.pages if history.owners][:_PAGES]
    has_probabilities = explained.divergence is not None and any((explained.divergence.engine,
                                                   explained.divergence.reference))  # fmt: skip
    pool = () if has_probabilities else explained.pool
    heights: dict[str, float] = {}
    if explained.trace.recorded and (len(lanes) > 1 or explained.invocations or not pool):
        heights["lanes"] = 0.9 + 0.34 * (len(lanes) + _STEP * len(marks_of(explained)))
    if pages:
        heights["pages"] = 1.0 + 0.27 * len(pages)
    if has_probabilities:
        heights["probabilities"] = 1.7
    elif pool:
        heights["pool"] = 2.0
    if not heights:
        return style.nothing_to_draw("This request's trial has no recording.")
    figure = style.new_figure(_WIDTH, sum(heights.values()) + 1.1)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=list(heights.values()))
    axes = {name: figure.add_subplot(grid[n]) for n, name in enumerate(heights)}
    colours = colours_of(lanes)
    shared = [axes[name] for name in ("lanes", "pages") if name in axes]
    if "lanes" in axes:
        _draw_lanes(axes["lanes"], explained, lanes, colours)
    if "pages" in axes:
        marks = [seq for seq, _, _ in marks_of(explained)]
        draw_pages(axes["pages"], explained, pages, lambda owner: colours.get(owner, OTHERS), marks)
    for number, part in enumerate(shared):
        _number_axis(part, explained, last=number == len(shared) - 1)
    if has_probabilities:
        draw_probabilities(axes["probabilities"], explained)
    elif pool:
        draw_pool(axes["pool"], explained, pool)
    heading = style.words(explained.title)
    figure.suptitle(textwrap.fill(heading, int(_WIDTH * 8.5)), x=0.01, ha="left",
                    fontsize=style.TITLE + 1, fontweight="bold")  # fmt: skip
    if shared:
        style.legend_below(figure, _legend(explained, lanes, bool(pages)), most=4)
    return figure


def colours_of(lanes: Sequence[str]) -> dict[str, str]:
    """Return the colour of each request with a lane, the explained request first."""
    return dict(zip(lanes, (OWN, *PEERS), strict=False))


def _lanes(explained: Explanation) -> list[str]:
    """Return the request, then its batch peers, else the requests under way at the same time."""
    others = [peer.request_id for peer in explained.peers]
    if not others:
        events = explained.trace.events
        sent = _first(explained, "submitted")
        ended = _first(explained, "done")
        names = dict.fromkeys(events["request_id"].dropna())
        others = [
            str(name)
            for name in names
            if name != explained.request_id
            and sent.get(name, explained.end + 1) <= explained.end
            and ended.get(name, explained.end) >= explained.begin
        ]
    return [explained.request_id, *others[: len(PEERS)]]


def _first(explained: Explanation, kind: str) -> dict[str, int]:
    """Return the `seq` of each request's first event of a kind."""
    events = explained.trace.events
    rows = events[events["kind"] == kind].drop_duplicates("request_id")
    return {str(r): int(s) for r, s in zip(rows["request_id"], rows["seq"], strict=True)}


def _draw_lanes(
    axes: Axes, explained: Explanation, lanes: Sequence[str], colours: dict[str, str]
) -> None:
    low, high = bounds_of(explained)
    sent, ended = _first(explained, "submitted"), _first(explained, "done")
    wide = (high - low) / 260
    own = {invocation.invocation_id for invocation in explained.invocations}
    place = {name: number for number, name in enumerate(lanes)}
    for name, y in place.items():
        begin, end = sent.get(name, low), ended.get(name, high)
        axes.broken_barh([(begin, max(end - begin, wide))], (y - 0.28, 0.56), color=colours[name],
                         alpha=0.22, linewidth=0)  # fmt: skip
    for invocation in explained.trace.invocations.to_dict("records"):
        seq, end_seq = invocation["seq"], invocation["end_seq"]
        for name in set(invocation["request_ids"] or ()) & place.keys():
            together = int(invocation["invocation_id"]) in own
            axes.broken_barh(
                [(float(seq), max(float(end_seq) - float(seq), wide))],
                (place[name] - 0.28, 0.56),
                facecolor=colours[name] if together else "none",
                edgecolor="white" if together else colours[name],
                linewidth=0.7,
                hatch="//////" if invocation["phase"] == "prefill" else None,
            )
    rows = explained.trace.requests.set_index("request_id")["outcome"].to_dict()
    labels = [f"{style.short_name(name)}, {rows.get(name, 'unknown')}" for name in lanes]
    axes.set_yticks(range(len(lanes)), labels)
    marks = marks_of(explained)
    axes.set_ylim(len(lanes) - 0.4, -0.35 - _STEP * max(len(marks), 1))
    for number, (seq, words, mark) in enumerate(marks):
        height = -0.65 - _STEP * number  # one line each, because they may be close
        axes.axvline(seq, color=style.VERMILLION, linewidth=1.1, linestyle="--", zorder=5)
        axes.plot([seq], [height], mark, color=style.VERMILLION, markersize=8, zorder=6)
        right = seq > (low + high) / 2
        axes.annotate(words, (seq, height), (-8 if right else 8, 0), textcoords="offset points",
                      ha="right" if right else "left", va="center", fontsize=style.SMALL,
                      color=style.VERMILLION, zorder=7,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
    _small_marks(axes, explained, place)
    title = "Requests in its batches" if explained.peers else "Requests at the same time"
    style.dress(axes, title, "", "request")
    axes.grid(visible=False)


def _small_marks(axes: Axes, explained: Explanation, place: dict[str, int]) -> None:
    """Mark further findings with wrong data, and every shortage of pages, in their lanes."""
    events = explained.trace.events
    short = events[(events["kind"] == "alloc_failed") & events["request_id"].isin(list(place))]
    for seq, name in zip(short["seq"], short["request_id"], strict=True):
        axes.plot([float(seq)], [place[name]], "s", color="white", markeredgecolor="black",
                  markersize=6, zorder=6)  # fmt: skip
    further = [
        f.seq for f in explained.findings if f.severity == WRONG_DATA and f != explained.finding
    ]
    for place_of_it in further:
        if place_of_it is not None:
            axes.plot([place_of_it], [0], "v", color="white", markeredgecolor=style.VERMILLION,
                      markersize=7, zorder=6)  # fmt: skip


def marks_of(explained: Explanation) -> list[tuple[float, str, str]]:
    """Return errors as event, text and marker; marks of the same event are joined."""
    marks: dict[int, tuple[list[str], str]] = {}

    def mark(seq: int | None, words: str, sign: str) -> None:
        if seq is not None:
            marks.setdefault(seq, ([], sign))[0].append(words)

    finding, wrong, death = explained.finding, explained.divergence, explained.death
    if finding is not None:
        mark(finding.seq, f"{finding.rule} ({finding.cause})", "v")
    short = [moment.seq for moment in explained.timeline if moment.kind == "alloc_failed"]
    mark(short[-1] if short else None, "too few pages", "s")
    if wrong is not None:
        mark(wrong.seq, f"token {wrong.token_index} is wrong", "X")
    if death is not None:
        mark(death.seq, "worker died", "P")
    low, high = bounds_of(explained)
    inside = [(float(seq), *both) for seq, both in sorted(marks.items()) if low <= seq <= high]
    return [(seq, " and ".join(dict.fromkeys(words)), sign) for seq, words, sign in inside][:4]


def bounds_of(explained: Explanation) -> tuple[float, float]:
    """Return the first and the last event of the axis."""
    span = explained.end - explained.begin
    before = max(0.03 * span, _LEAST - span, 4)
    return explained.begin - before, explained.end + max(0.03 * span, 4)


def _number_axis(axes: Axes, explained: Explanation, *, last: bool) -> None:
    low, high = bounds_of(explained)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if not last:
        axes.tick_params(labelbottom=False)
        return
    seconds = _clock(explained)
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high and tick >= 0]
    axes.set_xticks(ticks, [f"{int(tick)}\n{seconds(tick):.3f} s" for tick in ticks])
    axes.set_xlabel("event number, and time since the engine started",
                    fontsize=style.TEXT)  # fmt: skip


def _clock(explained: Explanation) -> Callable[[float], float]:
    events, invocations = explained.trace.events, explained.trace.invocations
    if len(events):
        known = events["seq"].to_numpy(float), events["t_s"].to_numpy(float)
    else:
        known = invocations["seq"].to_numpy(float), invocations["t_s"].to_numpy(float)
    return lambda seq: float(np.interp(seq, *known))


def _legend(explained: Explanation, lanes: Sequence[str], pages: bool) -> list[Line2D | Patch]:
    grey, kinds = "#8C8C8C", explained.trace.events["kind"]
    intervals = [interval for history in explained.pages for interval in history.owners]
    owners = {owner for interval in intervals for owner in interval.owners}
    shown: list[Line2D | Patch] = []
    if len(explained.trace.invocations):
        shown += [
            Patch(facecolor=grey, edgecolor="white", hatch="//////", label="prefill"),
            Patch(facecolor=grey, label="decode"),
            Patch(facecolor="none", edgecolor=grey, label="invocation without it"),
        ]
    if pages and owners - {*colours_of(lanes), CACHED, UNOWNED, FREE}:
        shown.append(Patch(facecolor=OTHERS, label="another request's page"))
    if pages and CACHED in owners:
        label = "page cached, held by no request"
        shown.append(Patch(facecolor=style.STATE_COLOURS["cached"], label=label))
    if pages and UNOWNED in owners:
        shown.append(
            Patch(
                facecolor=style.STATE_COLOURS["leaked"], label="page not cached, held by no request"
            )
        )
    if pages and len(explained.trace.invocations):
        shown.append(Line2D([], [], color=grey, linewidth=2.2, label="writer (black: padding)"))
    if (kinds == "alloc_failed").any():
        shown.append(_sign("s", "black", "too few pages"))
    if any(f.severity == WRONG_DATA for f in explained.findings if f != explained.finding):
        shown.append(_sign("v", style.VERMILLION, "further wrong data"))
    return shown


def _sign(marker: str, edge: str, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color="white", markeredgecolor=edge, markersize=7,
                  linestyle="none", label=label)  # fmt: skip
