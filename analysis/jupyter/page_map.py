"""The shapes of a page map as HTML shows it, filled into `templates/page_map.html.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.core.wording import capitalised, listed, ranges
from analysis.plots.page_map import (
    SQUARES,
    Owner,
    default_columns,
    in_trie_too,
    leak_starts,
    owners,
)
from analysis.plots.style import STATE_COLOURS
from analysis.snapshots.snapshot import STATES, Snapshot

_CELL, _LEFT, _WIDTH = 26, 52, 720
_LETTERED, _RUNS, _RINGS = 256, 1000, 60
"""Most pages with letters, most rectangles of a large map, and most rings around leaks."""
_WEIGHT = np.array([0, 2, 1, 3], dtype=np.uint8)
"""By state: a square that stands for several pages has the colour of the heaviest."""


@dataclass
class PageMap:
    """Shapes in pixels: a square for each page of a small pool, runs of equal pages of others."""

    width: float = 0
    height: float = 0
    labels: list[dict[str, Any]] = field(default_factory=list)
    """First page of a row."""
    squares: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    rings: list[dict[str, float]] = field(default_factory=list)
    note: str = ""


def map_of(snapshot: Snapshot, changed: Sequence[int] = ()) -> PageMap:
    """Return the map of a pool; pages that changed get a dot, or are listed for a large pool."""
    if not snapshot.page_count:
        return PageMap(note="The pool has no pages.")
    if snapshot.page_count <= SQUARES:
        return _squares(snapshot, changed)
    return _blocks(snapshot, changed)


def _squares(snapshot: Snapshot, changed: Sequence[int]) -> PageMap:
    """Draw a square for each page; its tooltip has the page's state, holders, node and content."""
    count = snapshot.page_count
    columns, lettered = min(default_columns(count), count), count <= _LETTERED
    cell = _CELL if lettered else 20
    everyone = owners([snapshot])
    marks = {
        "shared": (set(in_trie_too(snapshot)), "corner: held by a request and in the trie"),
        "conflict": (set(snapshot.conflict_pages), "purple dot: in two places at once"),
        "changed": (set(changed), "black dot: changed"),
    }
    squares = []
    for page in range(count):
        held = [everyone[request] for request in snapshot.holders.get(page, ())]
        more = f"+{len(held) - 1}" if len(held) > 1 else ""
        texts = [str(page), *([held[0].letter + more] if held else [])]
        squares.append(
            {
                "x": _LEFT + page % columns * cell,
                "y": page // columns * cell,
                "state": STATES[int(snapshot.states[page])],
                "outline": held[0].colour if held else None,
                "title": _tooltip(snapshot, page, held),
                "texts": texts if lettered else (),
                "marks": [name for name, (pages, _) in marks.items() if page in pages],
            }
        )
    rows = -(-count // columns)
    outline = "outline and letter" if lettered else "outline (and tooltip)"
    notes = [f"{outline}: the request that holds it"] if everyone else []
    notes += [text for pages, text in marks.values() if pages]
    note = " ".join(f"{capitalised(text)}." for text in notes)
    if everyone and lettered:
        names = listed((f"{owner.letter} {owner.name}" for owner in everyone.values()), most=24)
        note += f" Requests: {names}."
    return PageMap(
        width=_LEFT + columns * cell + 2,
        height=rows * cell + 2,
        labels=[{"page": row * columns, "y": (row + 0.5) * cell} for row in range(rows)],
        squares=[{**square, "cell": cell} for square in squares],
        note=note,
    )


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


def _blocks(snapshot: Snapshot, changed: Sequence[int]) -> PageMap:
    """Draw runs of equal pages as one shape each, of coarser squares until there are few."""
    count, states = snapshot.page_count, snapshot.states
    names = {request: owner.name for request, owner in owners([snapshot]).items()}
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
    columns = min(default_columns(cells), cells)
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
            title += f", held by {listed((names[request] for request in who), most=4)}"
        share = found[state] / (end - begin)
        blocks.append(
            {
                "path": _outline(first, last, columns, scale),
                "state": STATES[state],
                "opacity": f"{0.25 + 0.75 * share:.2f}" if each > 1 and state else "",
                "title": title,
            }
        )
    rows = -(-cells // columns)
    starts_of_leaks = leak_starts(snapshot)
    ringed = starts_of_leaks if len(starts_of_leaks) <= _RINGS else []
    notes = [
        f"A square stands for {each} pages and has the colour of any leaked one, else of any live"
        " one, else of any cached one; the fewer, the paler."
        if each > 1
        else "",
        "A ring is where leaked pages begin." if ringed else "",
        f"Changed pages: {ranges(changed)}." if len(changed) else "",
    ]
    return PageMap(
        width=_LEFT + _WIDTH + 8,
        height=rows * scale + 8,
        labels=[
            {"page": row * columns * each, "y": (row + 0.5) * scale}
            for row in range(0, rows, max(1, round(rows / 12)))
        ],
        blocks=blocks,
        rings=[
            {
                "x": _LEFT + (page // each % columns + 0.5) * scale,
                "y": (page // each // columns + 0.5) * scale,
            }
            for page in ringed
        ],
        note=" ".join(filter(None, notes)),
    )


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


FILLS = {
    name: 'fill="currentColor" fill-opacity="0.13"' if name == "free" else f'fill="{colour}"'
    for name, colour in STATE_COLOURS.items()
}
"""Attributes of a shape by the state of its pages."""
