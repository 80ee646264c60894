"""Page lifetimes: a lane for each page, with a bar for each request that held it."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.plots import style

LANES = 48
_STATES = {"cached": "in the prefix cache", "leaked": "leaked"}
_PALE = (style.ORANGE, style.PURPLE)
_STATE_SPAN = ["page", "state", "begin", "end"]
_SPAN = ["page", "owner", "begin", "end", "place"]


def page_lifetimes(events: pd.DataFrame, states: pd.DataFrame | None = None) -> Figure:
    """Draw which request held each page from when to when, and when it was cached or leaked.

    A lane has a bar from `hold` to `drop` in its request's colour (thinner bars where several hold
    it at once). Behind it stand the spans of `states` (page, state, begin, end, as of
    `analysis.recording.replay.cached_or_leaked`), in the colours of a page map. At most 48 pages
    are drawn, those with most holders first; x is the number of the event, not time.
    """
    held = held_spans(events)
    if held.empty:
        return style.nothing_to_draw("No page was held by any request.")
    behind = pd.DataFrame(columns=_STATE_SPAN) if states is None else states
    chosen = _busiest(held)
    everyone = {*held["page"], *behind["page"]}
    lanes = {page: lane for lane, page in enumerate(sorted(chosen, reverse=True))}
    owners = list(dict.fromkeys(held.sort_values("begin")["owner"]))
    colours = style.request_colours(owners, style.REQUEST_COLOURS)
    figure = style.new_figure(9.6, 1.7 + 0.2 * max(len(lanes), 4))
    axes = figure.add_subplot()
    last = float(events["seq"].max())
    shown: list[Any] = list(behind[behind["page"].isin(chosen)].itertuples())
    for span in shown:
        axes.broken_barh(
            [(span.begin, max(span.end - span.begin, last / 400))],
            (lanes[span.page] - 0.45, 0.9),
            color=style.STATE_COLOURS[span.state],
        )
    listed: list[Any] = list(held[held["page"].isin(chosen)].itertuples())
    for span in listed:
        width = max(span.end - span.begin, last / 400)
        height = 0.62 / span.of
        low = lanes[span.page] - 0.31 + height * span.place
        axes.broken_barh(
            [(span.begin, width)], (low, height), facecolors=colours[span.owner],
            edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        name = style.short_name(span.owner)
        if span.of == 1 and width > last * 0.013 * len(name):
            axes.text(
                span.begin + width / 2, lanes[span.page], name, ha="center", va="center",
                fontsize=style.LEAST, clip_on=True,
                color="white" if colours[span.owner] not in _PALE else "black",
            )  # fmt: skip
    axes.set_ylim(-0.7, len(lanes) - 0.3)
    axes.set_yticks(list(lanes.values()), [str(page) for page in lanes])
    axes.set_xlim(0, last * 1.01)
    left_out = len(everyone) - len(lanes)
    note = f" ({left_out} further pages that were used are left out)" if left_out > 0 else ""
    style.dress(axes, "Requests that held each page" + note, "number of the event", "page")
    axes.tick_params(axis="y", labelsize=style.LEAST)
    legend = [
        *style.request_patches(colours),
        *(
            Patch(color=style.STATE_COLOURS[state], label=label)
            for state, label in _STATES.items()
            if (behind["state"] == state).any()
        ),
    ]
    style.legend_below(figure, legend, most=7)
    return figure


def _busiest(held: pd.DataFrame) -> list[int]:
    holders = held.groupby("page")["owner"].nunique()
    order = holders.reset_index().sort_values(["owner", "page"], ascending=[False, False])
    return [int(page) for page in order["page"].head(LANES)]


def held_spans(events: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each time that a request held a page: page, owner, begin, end.

    `of` is how many requests held a page at once at most, `place` the lane among them.
    """
    open_: dict[tuple[int, str], tuple[int, int]] = {}
    rows = []
    columns = ["seq", "kind", "request_id", "pages"]
    wanted = events.loc[events["kind"].isin(["pages_held", "pages_dropped"]), columns]
    listed: list[Any] = list(wanted.itertuples())
    for event in listed:
        for page in event.pages:
            key = page, event.request_id
            if event.kind == "pages_held":
                together = sum(p == page for p, _ in open_)
                open_.setdefault(key, (event.seq, together))
            elif key in open_:
                begin, place = open_.pop(key)
                rows.append((*key, begin, event.seq, place))
    last = int(events["seq"].max()) if len(events) else 0
    rows += [(*key, begin, last, place) for key, (begin, place) in open_.items()]
    frame = pd.DataFrame(rows, columns=_SPAN)
    frame = frame.sort_values(["owner", "begin"]).reset_index(drop=True)
    return frame.assign(of=frame.groupby("page")["place"].transform("max") + 1)
