"""Every page of the pool at one moment, as a map."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.core.wording import counted, listed, ranges, short_names
from analysis.plots import style
from analysis.plots.style import REQUEST_COLOURS, STATE_COLOURS
from analysis.snapshots.diff import SnapshotError, same_pool
from analysis.snapshots.snapshot import CACHED, LEAKED, STATES, Snapshot

CONFLICT_COLOUR = "#8B008B"
SQUARES = 1024
"""Up to so many pages each is a square with its owner's outline; more of them make an image."""
_NUMBERED = 256
_MARKED = 200
_EDGE = "#B5B5B5"


@dataclass(frozen=True)
class Owner:
    """A request that holds pages, with its looks in a map."""

    request_id: str
    name: str
    """Short, in characters that any font has."""
    letter: str
    colour: str


def page_map(
    snapshot: Snapshot,
    *,
    before: Snapshot | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draw every page as a square: its state, the requests that hold it, and inconsistencies.

    With `before` both moments are drawn side by side, and changed pages have a dot. A map of more
    than 1,024 pages is an image without outlines. `columns` is the number of pages in a row. Raises
    SnapshotError for fewer than one column, or snapshots of different pools.
    """
    if columns is not None and columns < 1:
        raise SnapshotError(f"A page map needs at least one column, not {columns}.")
    shown = [snapshot] if before is None else [before, snapshot]
    same_pool(shown[0], shown[-1])
    count = snapshot.page_count
    if not count:
        return style.nothing_to_draw("The pool has no pages: there is no map to draw.")
    columns = min(columns or default_columns(count, len(shown)), count)
    rows = math.ceil(count / columns)
    cell = min(0.36, (9.6 if before is None else 5.4) / columns, 40 / rows)
    handles = _legend(shown)
    width = max(6.4, len(shown) * (columns * cell + 0.85) + 0.1)
    wide = max(1, int(width / 2.5))
    notes = [line for note in _notes(shown) for line in textwrap.wrap(note, int(width * 13))]
    height = rows * cell + 0.21 * (math.ceil(len(handles) / wide) + len(notes)) + 1.5
    figure = style.new_figure(width, height)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    changed = () if before is None else (snapshot - before).changed_pages
    everyone = owners(shown)
    for axes, one, name in zip(panels, shown, ("before", "after"), strict=False):
        dotted = () if count > SQUARES and one is snapshot else changed
        _Map(axes, one, columns, cell, everyone, dotted).draw()
        heading = style.words(moment_of(one)) or name * (len(shown) - 1)
        axes.set_title(heading, fontsize=style.SMALL, loc="left")
    figure.suptitle(title or f"The pool of {counted(count, 'page')}", fontsize=style.TITLE)
    panels[0].set_ylabel("first page of the row", fontsize=style.SMALL)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(wide, len(handles)),
        fontsize=style.SMALL - 0.5,
        frameon=False,
        handlelength=1.4,
        title="\n".join(notes),
        title_fontsize=style.SMALL - 0.5,
    )
    return figure


def default_columns(count: int, maps: int = 1) -> int:
    """Return the default number of pages in a row."""
    if count <= 256:
        return 16
    if count <= SQUARES:
        return 32
    return math.ceil(math.sqrt(count * (2 if maps == 1 else 1)) / 32) * 32


def owners(shown: Sequence[Snapshot]) -> dict[str, Owner]:
    """Return the requests that hold pages, each with its letter and colour; grey past eight."""
    ids = list(dict.fromkeys(r for s in shown for r, pages in s.state.holdings.items() if pages))
    names = short_names(ids)
    return {
        request_id: Owner(
            request_id,
            plain(names[request_id], 24),
            letters(index),
            REQUEST_COLOURS[index] if index < len(REQUEST_COLOURS) else style.GREY,
        )
        for index, request_id in enumerate(ids)
    }


def letters(index: int) -> str:
    """Return A to Z, then AA, AB and so on, as spreadsheets name columns."""
    text = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        text = chr(ord("A") + place) + text
    return text


def plain(text: str, most: int) -> str:
    """Return text that any font can show, in one line, cut to `most` characters."""
    shown = "".join(
        c if c.isprintable() and ord(c) < 0x250 else c.encode("unicode_escape").decode()
        for c in text
    )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def moment_of(snapshot: Snapshot) -> str:
    """Return when a snapshot was taken, in words; "" if that is not known."""
    text = snapshot.moment if snapshot.moment in ("before", "after", "failure") else ""
    if snapshot.request_id is not None:
        [name] = short_names([snapshot.request_id]).values()
        text = f"{text or 'at'} request {plain(name, 24)}".replace("failure", "failure of")
    elif snapshot.moment == "failure":
        text = "at a failure"
    parts = [text, "" if snapshot.t_s is None else f"at {snapshot.t_s:.3f} s"]
    return ", ".join(part for part in parts if part)


def in_trie_too(snapshot: Snapshot) -> list[int]:
    """Return pages that requests hold and the trie has, too."""
    return sorted(snapshot.holders.keys() & snapshot.node_of_page.keys())


def by_several(snapshot: Snapshot) -> list[int]:
    """Return pages that more than one request holds."""
    return [page for page, requests in snapshot.holders.items() if len(requests) > 1]


def leak_starts(snapshot: Snapshot) -> list[int]:
    """Return the first page of every run of leaked pages."""
    leaked = (snapshot.states == LEAKED).astype(np.int8)
    return np.flatnonzero(np.diff(leaked, prepend=0) == 1).tolist()


class _Map:
    """One map in its axes, a unit being a page."""

    def __init__(
        self,
        axes: Axes,
        snapshot: Snapshot,
        columns: int,
        cell: float,
        everyone: dict[str, Owner],
        changed: Sequence[int],
    ) -> None:
        self.axes, self.snapshot, self.columns = axes, snapshot, columns
        self.points = cell * 72
        self.everyone, self.changed = everyone, changed
        self.count = snapshot.page_count
        self.rows = math.ceil(self.count / columns)

    def draw(self) -> None:
        """Draw everything."""
        self._frame()
        if self.count > SQUARES:
            self._image()
        else:
            self._squares()
            self._outlines()
            if self.count <= _NUMBERED and self.points >= 18:
                self._numbers()
        self._marks()

    def _frame(self) -> None:
        axes = self.axes
        margin = 0.15 if self.count <= SQUARES else 0.01 * self.columns
        axes.set_xlim(-margin, self.columns + margin)
        axes.set_ylim(self.rows + margin, -margin)
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        step = _step(self.columns, self.columns * self.points / 26)
        axes.set_xticks([c + 0.5 for c in range(0, self.columns, step)],
                        [str(c) for c in range(0, self.columns, step)])  # fmt: skip
        step = _step(self.rows, self.rows * self.points / 14)
        axes.set_yticks([r + 0.5 for r in range(0, self.rows, step)],
                        [str(r * self.columns) for r in range(0, self.rows, step)])  # fmt: skip
        axes.tick_params(labelsize=style.SMALL - 1, length=0, pad=2)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("bottom")
        axes.set_xlabel("page within its row", fontsize=style.SMALL)

    def _image(self) -> None:
        colours = np.array([to_rgb(STATE_COLOURS[name]) for name in STATES])
        pixels = np.ones((self.rows * self.columns, 3))
        pixels[: self.count] = colours[self.snapshot.states]
        self.axes.imshow(
            pixels.reshape(self.rows, self.columns, 3),
            extent=(0, self.columns, self.rows, 0),
            interpolation="nearest",
        )

    def _squares(self) -> None:
        for state, name in enumerate(STATES):
            pages = np.flatnonzero(self.snapshot.states == state)
            self._polygons(pages, 0.04, facecolor=STATE_COLOURS[name], edgecolor=_EDGE,
                           linewidth=0.5, label=name)  # fmt: skip

    def _outlines(self) -> None:
        """Outline each page by its first two holders, one within the other."""
        width = min(2.0, self.points / 9)
        inset = 0.03 + width / self.points / 2
        for place in (0, 1):
            held: dict[str, list[int]] = {}
            for page, requests in self.snapshot.holders.items():
                if 0 <= page < self.count and len(requests) > place:
                    held.setdefault(self.everyone[requests[place]].colour, []).append(page)
            for colour, pages in held.items():
                self._polygons(pages, inset + place * width / self.points,
                               facecolor="none", edgecolor=colour, linewidth=width)  # fmt: skip

    def _numbers(self) -> None:
        size = self.points * 0.29
        for page in range(self.count):
            x, y = self._centre(page)
            state = int(self.snapshot.states[page])
            requests = self.snapshot.holders.get(page, ())
            names = [self.everyone[request].letter for request in requests]
            below = "+".join(names) if len("+".join(names)) <= 3 else f"{names[0]}+{len(names) - 1}"
            colour = {LEAKED: "white", CACHED: "#333333"}.get(state, "#777777")
            dark = bool(requests)
            self.axes.text(x, y - 0.13 * dark, str(page), fontsize=size, ha="center", va="center",
                           color="black" if dark else colour,
                           weight="bold" if state == LEAKED else "normal")  # fmt: skip
            if dark:
                small = size if len(names) == 1 else size * 0.85
                self.axes.text(x, y + 0.18, below, fontsize=small, ha="center", va="center",
                               weight="bold")  # fmt: skip

    def _marks(self) -> None:
        """Mark what colours do not show."""
        small = self.points**2
        conflicts = self.snapshot.conflict_pages
        if self.count > SQUARES:
            starts = leak_starts(self.snapshot)
            if len(starts) <= _MARKED:
                self._scatter(starts, 0.5, 0.5, marker="o", s=60, facecolor="none",
                              edgecolor=style.VERMILLION, linewidth=1.3)  # fmt: skip
            self._scatter(self.changed, 0.5, 0.5, marker="s", s=max(0.6, small / 6), color="black",
                          linewidth=0)  # fmt: skip
            self._scatter(conflicts, 0.5, 0.5, marker="D", s=30, facecolor="none",
                          edgecolor=CONFLICT_COLOUR, linewidth=1.3)  # fmt: skip
            return
        leaked = self.snapshot.pages("leaked")
        if not (self.count <= _NUMBERED and self.points >= 18):
            self._scatter(leaked, 0.5, 0.5, marker="x", s=small / 7, color="white", linewidth=1.2)
        self._scatter(in_trie_too(self.snapshot), 0.8, 0.2, marker="^",
                      s=small / 13, facecolor=STATE_COLOURS["cached"], edgecolor="black",
                      linewidth=0.6)  # fmt: skip
        self._scatter(conflicts, 0.2, 0.2, marker="D",
                      s=small / 14, facecolor=CONFLICT_COLOUR, edgecolor="white",
                      linewidth=0.5)  # fmt: skip
        self._scatter(self.changed, 0.82, 0.82, marker="o", s=small / 18, facecolor="black",
                      edgecolor="white", linewidth=0.5)  # fmt: skip

    def _existing(self, pages: Iterable[int]) -> list[int]:
        return [page for page in pages if 0 <= page < self.count]

    def _scatter(self, pages: Sequence[int], dx: float, dy: float, **looks: object) -> None:
        if pages := self._existing(pages):
            places = np.asarray(pages)
            self.axes.scatter(places % self.columns + dx, places // self.columns + dy,
                              zorder=4, **looks)  # type: ignore[arg-type,unused-ignore]  # fmt: skip

    def _polygons(
        self, pages: Sequence[int] | npt.NDArray[np.intp], inset: float, **looks: object
    ) -> None:
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * (1 - 2 * inset) + inset
        places = np.asarray(pages, dtype=int)
        origins = np.stack([places % self.columns, places // self.columns], axis=1)
        if len(places):
            vertices = origins[:, None, :] + corners[None, :, :]
            self.axes.add_collection(PolyCollection(list(vertices), **looks))  # type: ignore[arg-type,unused-ignore]

    def _centre(self, page: int) -> tuple[float, float]:
        return page % self.columns + 0.5, page // self.columns + 0.5


def _legend(shown: Sequence[Snapshot]) -> list[Artist]:
    """Return legend entries: states, marks that occur, and at most eight requests."""
    last = shown[-1]
    handles: list[Artist] = [
        Patch(facecolor=STATE_COLOURS[name], edgecolor=_EDGE,
              label=f"{name}: {_both([s.counts[name] for s in shown])}")
        for name in STATES
    ]  # fmt: skip
    large = last.page_count > SQUARES
    if any(map(in_trie_too, shown)) and not large:
        handles.append(_marker("^", STATE_COLOURS["cached"], "black", "held, and in the trie"))
    if any(s.conflict_pages for s in shown):
        colour = CONFLICT_COLOUR
        handles.append(_marker("D", "none" if large else colour, colour, "in two places at once"))
    if large and any(0 < len(leak_starts(s)) <= _MARKED for s in shown):
        handles.append(_marker("o", "none", style.VERMILLION, "here leaked pages begin"))
    if len(shown) > 1:
        number = len((last - shown[0]).changed_pages)
        # On the later of two large maps dots would hide the new states.
        where = "change afterwards" if large else "changed"
        handles.append(_marker("s" if large else "o", "black", "black", f"{where}: {number:,}"))
    if large:
        return handles
    for owner in list(owners(shown).values())[: len(REQUEST_COLOURS)]:
        numbers = [len(set(s.state.holdings.get(owner.request_id, ()))) for s in shown]
        noun = "page" if set(numbers) == {1} else "pages"
        text = f"{owner.letter}: {style.words(owner.name)}, {_both(numbers)} {noun}"
        handles.append(Patch(facecolor="white", edgecolor=owner.colour, linewidth=2, label=text))
    return handles


def _notes(shown: Sequence[Snapshot]) -> list[str]:
    """Return further notes for the reader, a line each."""
    notes = []
    large = shown[-1].page_count > SQUARES
    number = len(owners(shown))
    if number and large:
        notes.append(f"{counted(number, 'request')} held pages; maps of over {SQUARES:,} pages "
                     "do not distinguish them.")  # fmt: skip
    elif number > len(REQUEST_COLOURS):
        rest = list(owners(shown).values())[len(REQUEST_COLOURS) :]
        names = listed((f"{owner.letter} {owner.name}" for owner in rest), most=8)
        verb = "is" if len(rest) == 1 else "are"
        notes.append(f"{names} {verb} outlined in grey.")
    if any(map(by_several, shown)) and not large:
        notes.append("Two outlines and a plus: a page that several requests hold.")
    strange = {p for s in shown for p in s.conflict_pages if not 0 <= p < s.page_count}
    if strange:
        notes.append(f"In use without being in the pool: page {ranges(strange)}.")
    if not all(s.consistent for s in shown):
        notes.append("Taken during an operation of the cache: it may contradict itself.")
    return notes


def _marker(marker: str, face: str, edge: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markersize=6, markerfacecolor=face,
                  markeredgecolor=edge, label=label)  # fmt: skip


def _both(numbers: Sequence[int]) -> str:
    texts = [f"{number:,}" for number in numbers]
    return texts[0] if len(set(texts)) == 1 else " -> ".join(texts)


def _step(count: int, room: float) -> int:
    """Return the smallest round step whose labels fit."""
    for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        if count / step <= max(2.0, room):
            break
    return step
