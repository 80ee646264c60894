"""Snapshots, changes and recordings as Jupyter shows them: HTML of its own, without scripts.

Colours of text and lines are those of the page, so that light and dark themes both can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.plots.page_map import (
    CONFLICT_COLOUR,
    SQUARES,
    Owner,
    default_columns,
    in_trie_too,
    leak_starts,
    moment_of,
    owners,
    plain,
)
from analysis.plots.style import STATE_COLOURS, VERMILLION
from analysis.plots.trie import Decode, colour_of, defects, tokens_text, tree_rows
from analysis.snapshots.change import Change, counted, cut, describe_snapshot, ranges
from analysis.snapshots.snapshot import LEAKED, STATES, Node, Snapshot

if TYPE_CHECKING:
    from analysis.recording.recording import Recording

_FREE = 'fill="currentColor" fill-opacity="0.13"'
_CELL, _LEFT, _WIDTH = 26, 52, 720
_LETTERED = 256
_RUNS = 1000
"""Most rectangles of a large map: what there is more of is drawn in coarser squares."""
_RINGS = 60
_NODES = 150
_SENTENCES = 40
# How telling a state is, in the order of STATES: a square for several pages shows the most so.
_TELLING = np.array([0, 2, 1, 3], dtype=np.uint8)


def snapshot_html(snapshot: Snapshot, *, decode: Decode | None = None) -> str:
    """Return a snapshot's counts, page map and trie as HTML.

    It stays under 300 KB whatever the pool's size. `decode` makes text of token ids.
    """
    when = moment_of(snapshot)
    parts = [
        f"<div><b>Snapshot</b> {escape(when)}</div>" if when else "<div><b>Snapshot</b></div>",
        f"<div>{escape(_capped(describe_snapshot(snapshot)))}</div>",
        _legend([snapshot]),
        _map(snapshot, ()),
        _items([str(c) for c in snapshot.conflicts[2:]]),
        _trie(snapshot, decode),
    ]
    return _wrapped(parts)


def change_html(change: Change) -> str:
    """Return what changed in sentences, and the later page map with the changed pages dotted."""
    if not change:
        return _wrapped(["<div>Nothing changed.</div>"])
    parts = [
        _items(change.sentences()),
        _legend([change.before, change.after]),
        _map(change.after, change.changed_pages),
    ]
    return _wrapped(parts)


def recording_html(recording: Recording) -> str:
    """Return what a recording has, what went wrong with it, and the last snapshot in it."""
    taken, failures = recording.taken, recording.failures
    parts = [f"<div><b>Recording</b> {escape(_capped(str(recording)))}</div>"]
    if failures:
        last = escape(moment_of(failures[-1]))
        parts.append(f"<div>{counted(len(failures), 'failure')} seen, the last {last}.</div>")
    faults = recording.faults
    parts.append(_items([f"Could not be watched: {fault}" for fault in faults]))
    if taken:
        parts.append(f"<details><summary>The last snapshot</summary>{snapshot_html(taken[-1])}"
                     "</details>")  # fmt: skip
    return _wrapped(parts)


def _wrapped(parts: Iterable[str]) -> str:
    style = "font-family:sans-serif;font-size:13px;line-height:1.45;overflow-x:auto"
    return f'<div class="cachelab" style="{style}">{"".join(parts)}</div>'


def _items(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    shown = [f"<li>{escape(_capped(sentence))}</li>" for sentence in sentences[:_SENTENCES]]
    if len(sentences) > _SENTENCES:
        shown.append(f"<li>and {len(sentences) - _SENTENCES} more</li>")
    return f'<ul style="margin:4px 0;padding-left:1.4em">{"".join(shown)}</ul>'


def _capped(text: str, most: int = 600) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _legend(shown: Sequence[Snapshot]) -> str:
    """Return the states with their counts, before and after where there are two."""
    entries = []
    for name in STATES:
        numbers = list(dict.fromkeys(f"{one.counts[name]:,}" for one in shown))
        look = "opacity:0.25;background:currentColor" if name == "free" else (
            f"background:{STATE_COLOURS[name]}")  # fmt: skip
        swatch = f'<span style="display:inline-block;width:11px;height:11px;{look}"></span>'
        text = " → ".join(numbers)
        entries.append(f'<span style="margin-right:16px;white-space:nowrap">{swatch} {name} '
                       f"<b>{text}</b></span>")  # fmt: skip
    return f'<div style="margin:6px 0">{"".join(entries)}</div>'


# -- the page map --------------------------------------------------------------------------


def _map(snapshot: Snapshot, changed: Sequence[int]) -> str:
    if not snapshot.page_count:
        return "<div>The pool has no pages.</div>"
    if snapshot.page_count <= SQUARES:
        return _squares(snapshot, changed)
    return _blocks(snapshot, changed)


def _squares(snapshot: Snapshot, changed: Sequence[int]) -> str:
    """Draw a square a page, with what there is to know of it as a tooltip."""
    count = snapshot.page_count
    columns = min(default_columns(count), count)
    cell = _CELL if count <= _LETTERED else 20
    everyone = owners([snapshot])
    shared, conflicting = set(in_trie_too(snapshot)), set(snapshot.conflict_pages)
    dotted = set(changed)
    shapes = []
    for page in range(count):
        x, y = _LEFT + page % columns * cell, page // columns * cell
        shapes.append(_square(snapshot, page, x, y, cell, everyone))
        if page in shared:
            shapes.append(f'<path d="M{x + cell - 9} {y + 3}h6v6z" fill="#000"/>')
        if page in conflicting:
            shapes.append(f'<circle cx="{x + 5}" cy="{y + 5}" r="3.5" fill="{CONFLICT_COLOUR}" '
                          'stroke="#fff"/>')  # fmt: skip
        if page in dotted:
            shapes.append(f'<circle cx="{x + cell - 5}" cy="{y + cell - 5}" r="3" fill="#000" '
                          'stroke="#fff"/>')  # fmt: skip
    rows = -(-count // columns)
    labels = [_label(row * columns, row * cell + cell / 2) for row in range(rows)]
    marks = (
        (shared, "corner: held by a request and in the trie"),
        (conflicting, "purple dot: in two places at once"),
        (dotted, "black dot: changed"),
    )
    lettered = count <= _LETTERED
    outline = "Outline and letter" if lettered else "Outline (and tooltip)"
    notes = [f"{outline}: the request that holds it"] if everyone else []
    notes += [text for pages, text in marks if pages]
    holding = [f"{owner.letter} {owner.name}" for owner in everyone.values()]
    text = "".join(f"{note[0].upper()}{note[1:]}. " for note in notes)
    text += f"Requests: {cut(holding, 24)}." if holding and lettered else ""
    return _svg(_LEFT + columns * cell + 2, rows * cell + 2, [*labels, *shapes]) + _note(text)


def _square(
    snapshot: Snapshot, page: int, x: int, y: int, cell: int, everyone: dict[str, Owner]
) -> str:
    state = int(snapshot.states[page])
    requests = snapshot.holders.get(page, ())
    look = _look(state)
    inset = 1.0
    if requests:
        inset, colour = 2.2, everyone[requests[0]].colour
        look += f' stroke="{colour}" stroke-width="2.4"'
    size = cell - 2 * inset
    title = escape(_told(snapshot, page, everyone))
    square = (f'<rect x="{x + inset:g}" y="{y + inset:g}" width="{size:g}" height="{size:g}" '
              f"{look}><title>{title}</title></rect>")  # fmt: skip
    if snapshot.page_count > _LETTERED:
        return square
    ink = {LEAKED: "#fff", 0: "currentColor"}.get(state, "#000")
    text = str(page)
    if requests:
        letter = everyone[requests[0]].letter
        more = f"+{len(requests) - 1}" if len(requests) > 1 else ""
        return square + (
            _text(x + cell / 2, y + 11, text, ink) + _text(x + cell / 2, y + 21, letter + more, ink)
        )
    return square + _text(x + cell / 2, y + cell / 2 + 3, text, ink)


def _told(snapshot: Snapshot, page: int, everyone: dict[str, Owner]) -> str:
    """Return all there is to know of a page, for its tooltip."""
    text = f"page {page}: {STATES[int(snapshot.states[page])]}"
    if page in snapshot.holders:
        text += f", held by {cut([everyone[r].name for r in snapshot.holders[page]], 4)}"
    if page in snapshot.node_of_page:
        text += f", node {snapshot.node_of_page[page]}"
    if page in snapshot.contents:
        content = snapshot.contents[page]
        text += f", mean {content.mean:.4g}, largest {content.maximum:.4g}"
        text += f", {content.nan_count} NaN" if content.nan_count else ""
    return text


def _blocks(snapshot: Snapshot, changed: Sequence[int]) -> str:
    """Draw a large pool: runs of alike pages as one rectangle, coarser until there are few."""
    count = snapshot.page_count
    names = {r: owner.name for r, owner in owners([snapshot]).items()}
    held, groups = _holder_groups(snapshot)
    keys = snapshot.states.astype(np.int64) + len(STATES) * held
    each = 1
    starts = _run_starts(keys)
    if len(starts) > _RUNS:
        keys = _TELLING[snapshot.states].astype(np.int64)
        starts = _run_starts(keys)
    while len(starts) > _RUNS:
        each *= 2
        # Past the end there are no pages, and 0 is the least telling.
        padded = np.zeros(-(-count // each) * each, dtype=np.int64)
        padded[:count] = _TELLING[snapshot.states]
        keys = padded.reshape(-1, each).max(axis=1)
        starts = _run_starts(keys)
    cells = len(keys)
    columns = min(default_columns(cells), cells)
    scale = _WIDTH / columns
    shapes = []
    for first, last in zip(starts, [*starts[1:], cells], strict=True):
        pages = slice(first * each, min(last * each, count))
        found = np.bincount(snapshot.states[pages], minlength=len(STATES))
        state = max(np.flatnonzero(found), key=lambda s: _TELLING[s])
        title = f"{_page_range(pages.start, pages.stop)}: " + ", ".join(
            f"{found[s]:,} {STATES[s]}" for s in np.flatnonzero(found)
        )
        who = groups[held[first]] if each == 1 else ()
        if who and found[state] == pages.stop - pages.start and state == STATES.index("live"):
            several = len({*held[pages].tolist()}) > 1
            title += "" if several else f", held by {cut([names[r] for r in who], 4)}"
        look = _look(int(state))
        if each > 1 and state:
            share = found[state] / (pages.stop - pages.start)
            look += f' fill-opacity="{0.25 + 0.75 * share:.2f}"'
        shapes.append(f'<path d="{_outline(first, last, columns, scale)}" {look}>'
                      f"<title>{escape(title)}</title></path>")  # fmt: skip
    rows = -(-cells // columns)
    step = max(1, round(rows / 12))
    labels = [_label(r * columns * each, (r + 0.5) * scale) for r in range(0, rows, step)]
    notes = []
    if each > 1:
        notes.append(
            f"A square stands for {each} pages and has the colour of any leaked one, else of any "
            "live one, else of any cached one; the fewer, the paler."
        )
    if 0 < len(rings := leak_starts(snapshot)) <= _RINGS:
        notes.append("A ring is where leaked pages begin.")
        shapes += [_ring(page // each, columns, scale) for page in rings]
    if len(changed):
        notes.append(f"Changed pages: {ranges(changed)}.")
    body = ["<g shape-rendering='crispEdges'>", *shapes, "</g>"]
    svg = _svg(_LEFT + _WIDTH + 8, rows * scale + 8, [*labels, *body])
    return svg + _note(" ".join(notes))


def _holder_groups(
    snapshot: Snapshot,
) -> tuple[npt.NDArray[np.int64], list[tuple[str, ...]]]:
    """Return for each page a number of who holds it, and the requests behind every number."""
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
        wide = columns if whole else size
        x, y = _LEFT + column * scale, row * scale
        w, h = wide * scale, max(1, whole) * scale
        pieces.append(f"M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h-{w:.1f}z")
        first += size
    return "".join(pieces)


def _ring(cell: int, columns: int, scale: float) -> str:
    x, y = _LEFT + (cell % columns + 0.5) * scale, (cell // columns + 0.5) * scale
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="{VERMILLION}" '
            'stroke-width="1.5"/>')  # fmt: skip


def _look(state: int) -> str:
    return _FREE if STATES[state] == "free" else f'fill="{STATE_COLOURS[STATES[state]]}"'


def _label(page: int, y: float) -> str:
    return (f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" font-size="10" text-anchor="end" '
            f'fill="currentColor">{page}</text>')  # fmt: skip


def _text(x: float, y: float, text: str, ink: str) -> str:
    return (f'<text x="{x:g}" y="{y:g}" font-size="8.5" text-anchor="middle" fill="{ink}" '
            f'pointer-events="none">{escape(text)}</text>')  # fmt: skip


def _svg(width: float, height: float, shapes: Iterable[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="page map" '
            f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'style="max-width:100%;height:auto">{"".join(shapes)}</svg>')  # fmt: skip


def _note(text: str) -> str:
    return f'<div style="opacity:0.75;font-size:12px">{escape(text)}</div>' if text else ""


def _page_range(first: int, stop: int) -> str:
    return f"page {first}" if stop == first + 1 else f"pages {first}-{stop - 1}"


# -- the trie ------------------------------------------------------------------------------


def _trie(snapshot: Snapshot, decode: Decode | None) -> str:
    """Return the trie as nested lists, in the order of `tree_rows`."""
    if not snapshot.nodes:
        return ""
    wrong = defects(snapshot)
    used = [node.node for node in snapshot.nodes if node.ref_count]
    rows, left_out = tree_rows(snapshot.nodes, [*wrong, *used], _NODES)
    nodes = {node.node: node for node in snapshot.nodes}
    pieces, open_lists = [], 0
    for row in rows:
        while open_lists > row.depth + 1:
            pieces.append("</li></ul>")
            open_lists -= 1
        if open_lists == row.depth + 1:
            pieces.append("</li>")
        else:
            indent = "1.3em" if row.depth else "0"
            pieces.append(f'<ul style="list-style:none;margin:0 0 0 {indent};padding:0">')
            open_lists += 1
        pieces.append("<li>" + _node(nodes[row.number], wrong.get(row.number), row.hidden, decode))
    pieces.append("</li></ul>" * open_lists)
    leaves = sum(node.leaf for node in snapshot.nodes)
    summary = f"Trie: {counted(len(snapshot.nodes) - 1, 'node')}, {leaves} in the set of leaves"
    summary += f" ({left_out} left out here)" if left_out else ""
    summary += f"; {counted(len(wrong), 'node')} with something wrong" if wrong else ""
    return f"<details open><summary>{summary}</summary>{''.join(pieces)}</details>"


def _node(node: Node, wrong: str | None, hidden: int, decode: Decode | None) -> str:
    shape = "0" if node.leaf else "50%"
    mark = (f'<span style="display:inline-block;width:9px;height:9px;border:1px solid;'
            f'border-radius:{shape};background:{colour_of(node)}"></span>')  # fmt: skip
    words = [f"node {node.node}" if node.parent is not None else f"root (node {node.node})"]
    words += [] if node.page is None else [f"page {node.page}"]
    words.append(counted(node.ref_count, "reference"))
    words += ["leaf"] if node.leaf else []
    text = f"{mark} {', '.join(words)}"
    if tokens := tokens_text(node, decode, 60):
        text += f" <code>{escape(plain(tokens, 90))}</code>"
    if wrong:
        text += f' <b style="color:{VERMILLION}">{escape(wrong)}</b>'
    if hidden:
        text += f' <span style="opacity:0.75">+ {hidden} below</span>'
    return text
