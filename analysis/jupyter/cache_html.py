"""Snapshots, changes and recordings as Jupyter shows them: HTML without scripts.

Text and lines have the colour of the page, so that light and dark themes are readable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.core.templates import render
from analysis.core.wording import counted, plain
from analysis.jupyter.page_map import CONFLICT_COLOUR, FILLS, in_turn, maps_of
from analysis.plots.style import STATE_COLOURS, VERMILLION
from analysis.plots.trie import Decode, colour_of, defects, tokens_text, tree_rows
from analysis.snapshots.diff import Diff
from analysis.snapshots.snapshot import STATES, Snapshot, describe, moment_of

if TYPE_CHECKING:
    from analysis.recording.recording import Recording

_NODES = 150
_COLOURS = {
    "fills": FILLS,
    "cached": STATE_COLOURS["cached"],
    "conflict_colour": CONFLICT_COLOUR,
    "vermillion": VERMILLION,
}


def snapshot_html(snapshot: Snapshot, *, decode: Decode | None = None) -> str:
    """Return a snapshot's counts, page map and trie as HTML, below 300 KB for any pool.

    `decode` makes text of token ids.
    """
    return _render("snapshot.html.j2", snapshot=_snapshot(snapshot, decode))


def change_html(change: Diff[Snapshot]) -> str:
    """Return what changed in sentences, and the page maps of both moments with changes marked."""
    shown = (change.before, change.after)
    return _render(
        "change.html.j2",
        sentences=change.sentences(),
        legend=_legend(*shown),
        maps=maps_of(*shown, changed=change.changed_pages) if change else None,
    )


def recording_html(recording: Recording) -> str:
    """Return the size of a recording, what went wrong with it, and its last snapshot."""
    taken, failures = recording.taken, recording.failures
    failed = ""
    if failures:
        failed = f"{counted(len(failures), 'failure')} seen, the last {moment_of(failures[-1])}."
    return _render(
        "recording.html.j2",
        recording=str(recording),
        failed=failed,
        faults=[f"Could not be recorded: {fault}" for fault in recording.faults],
        snapshot=_snapshot(taken[-1], None) if taken else None,
    )


def _render(template: str, **values: Any) -> str:
    return render("analysis.jupyter", template, **_COLOURS, **values)


def _snapshot(snapshot: Snapshot, decode: Decode | None) -> dict[str, Any]:
    return {
        "when": moment_of(snapshot),
        "description": describe(snapshot),
        "legend": _legend(snapshot),
        "maps": maps_of(snapshot),
        "conflicts": [str(conflict) for conflict in snapshot.conflicts[2:]],
        "trie": _trie(snapshot, decode),
    }


def _legend(*shown: Snapshot) -> dict[str, str]:
    """Return the pages in each state, before and after where there are two snapshots."""
    return {name: in_turn([one.counts[name] for one in shown]) for name in STATES}


def _trie(snapshot: Snapshot, decode: Decode | None) -> dict[str, Any] | None:
    """Return the nodes of the trie as the lines of nested lists, in the order of `tree_rows`."""
    if not snapshot.nodes:
        return None
    wrong = defects(snapshot)
    used = [node.node for node in snapshot.nodes if node.ref_count]
    rows, left_out = tree_rows(snapshot.nodes, [*wrong, *used], _NODES)
    nodes = {node.node: node for node in snapshot.nodes}
    lines, depth = [], -1
    for row in rows:
        node = nodes[row.number]
        words = [f"node {node.node}" if node.parent is not None else f"root (node {node.node})"]
        words += [] if node.page is None else [f"page {node.page}"]
        words.append(counted(node.ref_count, "reference"))
        words += ["leaf"] if node.leaf else []
        lines.append(
            {
                "depth": row.depth,
                "deeper": row.depth > depth,
                "closed": max(0, depth - row.depth),
                "colour": colour_of(node),
                "leaf": node.leaf,
                "words": ", ".join(words),
                "tokens": plain(tokens_text(node, decode, 60), 90),
                "wrong": wrong.get(row.number, ""),
                "hidden": row.hidden,
            }
        )
        depth = row.depth
    leaves = sum(node.leaf for node in snapshot.nodes)
    summary = f"Trie: {counted(len(snapshot.nodes) - 1, 'node')}, {leaves} in the set of leaves"
    summary += f" ({left_out} not shown)" if left_out else ""
    summary += f"; {counted(len(wrong), 'node')} with a defect" if wrong else ""
    return {"summary": summary, "lines": lines, "depth": depth}
