"""Page maps: every page of a pool at one moment, or at two, drawn by `page_map.html.j2`.

Pools of up to `SQUARES` pages have a square for each page, larger ones a shape for each run of
equal pages. Lengths are in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.core.wording import counted, listed, plain, ranges, short_names
from analysis.plots.style import GREY, REQUEST_COLOURS, STATE_COLOURS, VERMILLION
from analysis.snapshots.diff import same_pool
from analysis.snapshots.snapshot import LEAKED, STATES, Snapshot, moment_of

SQUARES = 1024
"""Most pages that have a square each."""
CONFLICT_COLOUR = "#B5179E"
"""For pages in two places at once; visible on a light and on a dark page."""
_EDGE = 'stroke="currentColor" stroke-opacity="0.3" stroke-width="0.6"'
FILLS = {
    name: f'fill="currentColor" fill-opacity="0.07" {_EDGE}'
    if name == "free"
    else f'fill="{colour}"'
    for name, colour in STATE_COLOURS.items()
}
"""Attributes of a shape by the state of its pages. Free pages have the colour of the text, so that
they are pale on a light page and dark on a dark one; on white that is STATE_COLOURS["free"]."""
_CELL, _SMALL_CELL, _LEFT, _WIDTH = 28, 20, 40, 720
_LETTERED, _RUNS, _RINGS = 256, 1000, 60
"""Most pages with letters, most shapes of a large map, and most rings of a kind."""
_WEIGHT = np.array([0, 2, 1, 3], dtype=np.uint8)
"""By state: a square that stands for several pages has the colour of the heaviest."""


@dataclass(frozen=True)
class Owner:
    """A request that holds pages, with its looks in a map."""

    request_id: str
    name: str
    """Short, in characters that any font has."""
    letter: str
    colour: str
    outlined: bool
    """Whether its colour is its own; the ninth request and all after it are grey."""


@dataclass
class PageMap:
    """The shapes of one map."""

    width: float
    height: float
    caption: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    labels: list[dict[str, Any]] = field(default_factory=list)
    """First page of a row."""
    squares: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    rings: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class PageMaps:
    """Maps of the same pool, and what explains all of them."""

    maps: list[PageMap] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    """Legend entries of the requests that have an outline."""
    notes: list[str] = field(default_factory=list)


def maps_of(*shown: Snapshot, changed: Sequence[int] = ()) -> PageMaps:
    """Return the map of a pool at each moment, earliest first; pages in `changed` are marked.

    Raises SnapshotError if the snapshots are of different pools.
    """
    same_pool(shown[0], shown[-1])
    count = shown[0].page_count
    if not count:
        return PageMaps(notes=["The pool has no pages."])
    everyone = owners(shown)
    if count > SQUARES:
        drawn = [_blocks(one, everyone) for one in shown]
        maps, notes = [one for one, _ in drawn], [note for _, note in drawn]
    else:
        maps, notes = [_squares(one, everyone, changed) for one in shown], []
    for one, snapshot, name in zip(maps, shown, ("before", "after"), strict=False):
        one.counts = snapshot.counts
        # One map stands below the words that say when it was taken.
        one.caption = (moment_of(snapshot) or name) if len(shown) > 1 else ""
    notes = list(dict.fromkeys([*notes, *_notes(shown, everyone, changed)]))
    requests = [] if count > SQUARES else _requests(shown, everyone)
    return PageMaps(maps, requests, [note for note in notes if note])


def owners(shown: Sequence[Snapshot]) -> dict[str, Owner]:
    """Return the requests that hold pages, each with its letter and colour; grey past eight."""
    ids = list(dict.fromkeys(r for s in shown for r, pages in s.state.holdings.items() if pages))
    names, own = short_names(ids), len(REQUEST_COLOURS)
    return {
        request_id: Owner(
            request_id,
            plain(names[request_id], 24),
            letters(index),
            REQUEST_COLOURS[index] if index < own else GREY,
            index < own,
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


def _columns(count: int) -> int:
    if count <= _LETTERED:
        return min(16, count)
    if count <= SQUARES:
        return 32
    return min(math.ceil(math.sqrt(count * 2) / 32) * 32, count)


def _in_trie_too(snapshot: Snapshot) -> set[int]:
    """Return pages that requests hold and the trie has, too."""
    return snapshot.holders.keys() & snapshot.node_of_page.keys()


def _leak_starts(snapshot: Snapshot) -> list[int]:
    """Return the first page of every run of leaked pages."""
    leaked = (snapshot.states == LEAKED).astype(np.int8)
    return np.flatnonzero(np.diff(leaked, prepend=0) == 1).tolist()


def _squares(snapshot: Snapshot, everyone: Mapping[str, Owner], changed: Sequence[int]) -> PageMap:
    """Draw a square for each page; its tooltip has the page's state, holders, node and content."""
    count, columns = snapshot.page_count, _columns(snapshot.page_count)
    lettered = count <= _LETTERED
    cell = _CELL if lettered else _SMALL_CELL
    marks = {
        "shared": _in_trie_too(snapshot),
        "conflict": set(snapshot.conflict_pages),
        "changed": set(changed),
        # Where there is no room for numbers, a cross makes a leaked page easier to find.
        "leaked": set() if lettered else set(snapshot.pages("leaked")),
    }
    squares = []
    for page in range(count):
        held = [everyone[request] for request in snapshot.holders.get(page, ())]
        squares.append(
            {
                "cell": cell,
                "x": _LEFT + page % columns * cell,
                "y": page // columns * cell,
                "state": STATES[int(snapshot.states[page])],
                "outlines": [owner.colour for owner in held[:2]],
                "title": _tooltip(snapshot, page, held),
                "texts": [str(page), *_letters_of(held)] if lettered else (),
                "marks": [name for name, pages in marks.items() if page in pages],
            }
        )
    rows = -(-count // columns)
    return PageMap(
        width=_LEFT + columns * cell + 2,
        height=rows * cell + 2,
        labels=[{"page": row * columns, "y": (row + 0.5) * cell} for row in range(rows)],
        squares=squares,
    )


def _letters_of(held: Sequence[Owner]) -> list[str]:
    """Return the letters of a page's holders, as many as there is room for."""
    names = [owner.letter for owner in held]
    every = "+".join(names)
    return [every if len(every) <= 3 else f"{names[0]}+{len(names) - 1}"] if names else []


def _requests(shown: Sequence[Snapshot], everyone: Mapping[str, Owner]) -> list[dict[str, str]]:
    """Return legend entries: letter and name of each request, and its pages at every moment."""
    entries = []
    for owner in everyone.values():
        numbers = [len(set(one.state.holdings.get(owner.request_id, ()))) for one in shown]
        noun = "page" if set(numbers) == {1} else "pages"
        text = f"{owner.letter}: {owner.name}, {in_turn(numbers)} {noun}"
        if owner.outlined:
            entries.append({"colour": owner.colour, "text": text})
    return entries


def in_turn(numbers: Sequence[int]) -> str:
    """Return a number at one or more moments: "3", or "3 → 4" where it changes."""
    return " → ".join(dict.fromkeys(f"{number:,}" for number in numbers))


def _notes(
    shown: Sequence[Snapshot], everyone: Mapping[str, Owner], changed: Sequence[int]
) -> list[str]:
    """Return what explains the marks that occur, and what no map can show."""
    count = shown[0].page_count
    large = count > SQUARES
    strange = {p for s in shown for p in s.conflict_pages if not 0 <= p < count}
    grey = [owner for owner in everyone.values() if not owner.outlined]
    names = listed((f"{owner.letter} {owner.name}" for owner in grey), most=8)
    several = any(len(who) > 1 for one in shown for who in one.holders.values())
    conflict = "Purple ring" if large else "Upper left dot"
    notes = [
        (large and everyone, f"{counted(len(everyone), 'request')} held pages; a pool of over"
         f" {SQUARES:,} pages has no outlines."),
        (not large and everyone, "Outline: the request that holds it."),
        (not large and grey, f"In grey: {names}."),
        (not large and several, "Two outlines: several requests hold it."),
        (not large and any(map(_in_trie_too, shown)),
         "Upper right corner: held by a request and in the trie."),
        (any(s.conflict_pages for s in shown), f"{conflict}: in two places at once."),
        (not large and len(changed),
         f"Lower right dot: changed ({counted(len(changed), 'page')})."),
        (large and len(changed), f"Changed pages: {ranges(changed)}."),
        (strange, f"In use without being in the pool: page {ranges(strange)}."),
    ]  # fmt: skip
    return [text for holds, text in notes if holds]


def _tooltip(snapshot: Snapshot, page: int, held: Sequence[Owner]) -> str:
    text = f"page {page}: {STATES[int(snapshot.states[page])]}"
    if held:
        text += f", held by {listed((owner.name for owner in held), most=4)}"
    if page in snapshot.node_of_page:
        text += f", node {snapshot.node_of_page[page]}"
    if page in snapshot.contents:
        content = snapshot.contents[page]
        text += f", mean {content.mean:.4g}, largest {content.maximum:.4g}"
        text += f", {content.nan_count} NaN" if content.nan_count else ""
    return text


def _blocks(snapshot: Snapshot, everyone: Mapping[str, Owner]) -> tuple[PageMap, str]:
    """Draw runs of equal pages as one shape each, of coarser squares until there are few.

    Returns the map, and a note on its squares.
    """
    count, states = snapshot.page_count, snapshot.states
    held, groups = _holder_groups(snapshot)
    keys, each = states.astype(np.int64) + len(STATES) * held, 1
    if len(_run_starts(keys)) > _RUNS:
        keys = _WEIGHT[states].astype(np.int64)
    while len(starts := _run_starts(keys)) > _RUNS:
        each *= 2
        padded = np.zeros(-(-count // each) * each, dtype=np.int64)
        padded[:count] = _WEIGHT[states]
        keys = padded.reshape(-1, each).max(axis=1)
    cells = len(keys)
    columns = _columns(cells)
    scale = _WIDTH / columns
    blocks = []
    for first, last in zip(starts, [*starts[1:], cells], strict=True):
        begin, end = first * each, min(last * each, count)
        found = np.bincount(states[begin:end], minlength=len(STATES))
        present = np.flatnonzero(found)
        state = max(present, key=lambda s: _WEIGHT[s])
        title = f"page {begin}" if end == begin + 1 else f"pages {begin}-{end - 1}"
        title += ": " + ", ".join(f"{found[s]:,} {STATES[s]}" for s in present)
        who = groups[held[first]] if each == 1 else ()
        whole = found[state] == end - begin and STATES[state] == "live"
        if who and whole and len(np.unique(held[begin:end])) == 1:
            title += f", held by {listed((everyone[request].name for request in who), most=4)}"
        share = found[state] / (end - begin)
        blocks.append(
            {
                "path": _outline(first, last, columns, scale),
                "state": STATES[state],
                "opacity": f"{0.25 + 0.75 * share:.2f}" if each > 1 and state else "",
                "title": title,
            }
        )
    rings, note = [], ""
    if each > 1:
        note = (
            f"A square stands for {each} pages and has the colour of any leaked one, else of any"
            " live one, else of any cached one; the fewer, the paler. "
        )
    conflicts = [page for page in snapshot.conflict_pages if 0 <= page < count]
    for pages, colour in ((_leak_starts(snapshot), VERMILLION), (conflicts, CONFLICT_COLOUR)):
        if len(pages) <= _RINGS:
            places = [divmod(page // each, columns) for page in pages]
            rings += [
                {"x": _LEFT + (x + 0.5) * scale, "y": (y + 0.5) * scale, "colour": colour}
                for y, x in places
            ]
            if pages and colour == VERMILLION:
                note += "Orange ring: here leaked pages begin."
    rows = -(-cells // columns)
    labels = [
        {"page": row * columns * each, "y": (row + 0.5) * scale}
        for row in range(0, rows, max(1, round(rows / 12)))
    ]
    width, height = _LEFT + _WIDTH + 8, rows * scale + 8
    return PageMap(width, height, labels=labels, blocks=blocks, rings=rings), note.strip()


def _holder_groups(snapshot: Snapshot) -> tuple[npt.NDArray[np.int64], list[tuple[str, ...]]]:
    """Return for each page a number of its holders, and the requests behind every number."""
    held = np.zeros(snapshot.page_count, dtype=np.int64)
    numbers: dict[tuple[str, ...], int] = {(): 0}
    for page, requests in snapshot.holders.items():
        if 0 <= page < snapshot.page_count:
            held[page] = numbers.setdefault(requests, len(numbers))
    return held, list(numbers)


def _run_starts(keys: npt.NDArray[np.int64]) -> list[int]:
    return [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist()]


def _outline(first: int, last: int, columns: int, scale: float) -> str:
    """Return cells `first` to `last` (exclusive) as at most three rectangles of a path."""
    pieces = []
    while first < last:
        row, column = divmod(first, columns)
        whole = (last - first) // columns if column == 0 else 0
        size = whole * columns if whole else min(last - first, columns - column)
        w, h = (columns if whole else size) * scale, max(1, whole) * scale
        pieces.append(f"M{_LEFT + column * scale:.1f} {row * scale:.1f}h{w:.1f}v{h:.1f}h-{w:.1f}z")
        first += size
    return "".join(pieces)
