"""The trie of the prefix cache at one moment, or at two moments side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.core.wording import counted, plain
from analysis.plots import style
from analysis.snapshots.snapshot import Node, Snapshot, moment_of
from analysis.snapshots.trie import Trie

Decode = Callable[[Sequence[int]], str]

IN_USE, UNUSED, ROOT = style.STATE_COLOURS["live"], style.STATE_COLOURS["cached"], "#DDDDDD"
NODES = 60
"""Most nodes that a figure shows."""
_ROW, _CHARACTER = 0.25, 0.0655
_INDENT, _TREE = 0.24, 3.0
_TOKENS = 30


@dataclass(frozen=True)
class Row:
    """A node of a tree that is drawn with one node a line and the root at the top left."""

    number: int
    depth: int
    parent: int | None
    """Line of its parent."""
    hidden: int
    """Nodes below it that are left out."""


def trie(snapshot: Snapshot, *, decode: Decode | None = None) -> Figure:
    """Draw the trie as a tree, a line a node: its page, references, first tokens and defects.

    Squares are in the engine's set of leaves; nodes in use are blue. `decode` turns token ids into
    text. Of more than NODES nodes those with references or defects come first.
    """
    if len(snapshot.nodes) < 2:
        return style.nothing_to_draw(_nothing(snapshot))
    wrong = defects(snapshot)
    used = [node.node for node in snapshot.nodes if node.ref_count]
    rows, left_out = tree_rows(snapshot.nodes, [*wrong, *used])
    panel = _Panel(snapshot, decode, _TOKENS, {n: (text, True) for n, text in wrong.items()})
    return _figure([panel], rows, left_out, "The trie of the prefix cache")


def tries(before: Snapshot, after: Snapshot, *, decode: Decode | None = None) -> Figure:
    """Draw two tries of the same engine side by side, each node on the same line in both.

    New, gone and changed nodes are marked. Of more than NODES nodes the changed come first.
    """
    if len(before.nodes) < 2 and len(after.nodes) < 2:
        return style.nothing_to_draw(_nothing(after))
    old, new = ({node.node: node for node in s.nodes} for s in (before, after))
    gone = {number: ("gone afterwards", True) for number in old if number not in new}
    fate = {n: (text, False) for n in new if (text := _fate(old.get(n), new[n]))}
    nodes = [*new.values(), *(node for number, node in old.items() if number not in new)]
    then, now = defects(before), defects(after)
    important = [*gone, *fate, *now, *then]
    rows, left_out = tree_rows(sorted(nodes, key=lambda node: node.node), important)
    panels = [
        _Panel(before, decode, 20, _join(gone, then), "before"),
        _Panel(after, decode, 20, _join(fate, now), "after"),
    ]
    return _figure(panels, rows, left_out, "The trie before and after")


def defects(snapshot: Snapshot) -> dict[int, str]:
    """Return the defects of nodes in a few words, by number of the node."""
    nodes = snapshot.nodes
    known = {node.node for node in nodes}
    parents = {node.parent for node in nodes}
    free = set(snapshot.state.free)
    pages = Counter(node.page for node in nodes if node.page is not None)
    found = {}
    for node in nodes:
        root = node.parent is None
        checks = (
            (node.leaf and root, "root among the leaves"),
            (node.leaf and not root and node.node in parents, "leaf with children"),
            (not node.leaf and not root and node.node not in parents, "childless, but no leaf"),
            (not root and node.parent not in known, f"parent {node.parent} is gone"),
            (node.ref_count < 0, "negative references"),
            (node.page in free, "its page is free"),
            (node.page is not None and pages[node.page] > 1, "page of two nodes"),
        )
        if defects := [text for wrong, text in checks if wrong]:
            found[node.node] = ", ".join(defects)
    return found


def tree_rows(
    nodes: Sequence[Node], important: Iterable[int] = (), limit: int = NODES
) -> tuple[list[Row], int]:
    """Return at most `limit` nodes as lines of a tree, and how many nodes are left out.

    The important nodes are chosen first, then those near the root, each with its ancestors.
    """
    tree = Trie(nodes)
    steps = list(tree.walk())
    order = [step.node.node for step in steps]
    depth = {step.node.node: step.depth for step in steps}
    parent = {step.node.node: step.parent for step in steps}
    kept = _chosen([*important, *sorted(order, key=lambda n: depth[n])], parent, limit)
    below = dict.fromkeys(order, 0)
    for number in reversed(order):
        above = parent[number]
        if above is not None:
            below[above] += below[number] + (number not in kept)
    rows: list[Row] = []
    line: dict[int | None, int] = {}
    for number in order:
        if number in kept:
            line[number] = len(rows)
            shown = [child for child in tree.children.get(number, ()) if child in kept]
            # Nodes below a shown child are counted in the child's line.
            hidden = below[number] - sum(below[child] for child in shown)
            rows.append(Row(number, depth[number], line.get(parent[number]), hidden))
    return rows, len(order) - len(rows)


def tokens_text(node: Node, decode: Decode | None, most: int) -> str:
    """Return a node's tokens decoded, or its first ids, in at most `most` characters."""
    if not node.tokens:
        return ""
    if decode is not None:
        return plain(repr(decode(node.tokens))[1:-1], most)
    text = " ".join(map(str, node.tokens))
    if len(text) <= most:
        return text
    return text[: most - 1].rsplit(" ", 1)[0] + " …"


class _Panel:
    """One trie of a figure, with remarks beside its nodes: text, and whether it is a defect."""

    def __init__(
        self,
        snapshot: Snapshot,
        decode: Decode | None,
        most: int,
        remarks: Mapping[int, tuple[str, bool]],
        title: str = "",
    ) -> None:
        self.snapshot, self.remarks = snapshot, remarks
        self.title = moment_of(snapshot) or title
        self.nodes = {node.node: node for node in snapshot.nodes}
        self.texts = {n: tokens_text(node, decode, most) for n, node in self.nodes.items()}

    def remark(self, row: Row) -> str:
        texts = [self.remarks[row.number][0]] if row.number in self.remarks else []
        if row.hidden and row.number in self.nodes:
            texts.append(f"+ {row.hidden} below")
        return ", ".join(texts)

    def widths(self, rows: Sequence[Row]) -> tuple[float, float, float]:
        """Return the inches that the tree, the columns and the remarks take."""
        shown = [row for row in rows if row.number in self.nodes]
        deepest = max((row.depth for row in rows), default=0)
        longest = max((len(self.texts[row.number]) for row in shown), default=0)
        remark = max((len(self.remark(row)) for row in shown), default=0)
        tree = deepest * _indent(rows) + 0.75
        return tree, (13 + max(6, longest)) * _CHARACTER + 0.1, remark * _CHARACTER + 0.15

    def draw(self, axes: Axes, rows: Sequence[Row], width: float) -> None:
        tree, columns, _ = self.widths(rows)
        axes.set_xlim(0, width)
        axes.set_ylim(len(rows) * _ROW, -0.8 * _ROW)
        axes.axis("off")
        axes.set_title(style.words(self.title), fontsize=style.SMALL, loc="left")
        self._text(axes, 0.02, -0.35, "node", colour=style.GREY)
        self._text(axes, tree, -0.35, f"{'page':>5} {'refs':>5}  tokens", colour=style.GREY)
        if len(self.nodes) < 2:
            below = len(self.nodes) + 0.5
            self._text(axes, tree, below, _nothing(self.snapshot), colour=style.GREY)
        indent = _indent(rows)
        elbows: dict[int, float] = {}
        for line, row in enumerate(rows):
            node = self.nodes.get(row.number)
            if node is None:
                continue
            x, y = row.depth * indent + 0.12, (line + 0.5) * _ROW
            if row.parent is not None and rows[row.parent].number in self.nodes:
                above = (row.depth - 1) * indent + 0.12
                start = elbows.get(row.parent, (row.parent + 0.5) * _ROW)
                elbows[row.parent] = y
                axes.plot([above, above, x], [start, y, y], color="#9A9A9A", linewidth=0.9,
                          zorder=1)  # fmt: skip
            bad = self.remarks.get(row.number, ("", False))[1]
            axes.scatter([x], [y], s=62, marker="s" if node.leaf else "o", zorder=2,
                         facecolor=colour_of(node), linewidth=1.8 if bad else 0.9,
                         edgecolor=style.VERMILLION if bad else "#333333")  # fmt: skip
            self._text(axes, x + 0.1, line + 0.5, str(node.node))
            page = "-" if node.page is None else str(node.page)
            columns_text = f"{page:>5} {node.ref_count:>5}  {self.texts[row.number]}"
            self._text(axes, tree, line + 0.5, columns_text)
            if remark := self.remark(row):
                self._text(axes, tree + columns, line + 0.5, remark,
                           colour=style.VERMILLION if bad else style.BLUE, bold=bad)  # fmt: skip

    def _text(
        self, axes: Axes, x: float, line: float, text: str, *, colour: str = "black",
        bold: bool = False,
    ) -> None:  # fmt: skip
        axes.text(x, line * _ROW, text, fontsize=style.LEAST, family="DejaVu Sans Mono",
                  va="center", color=colour, weight="bold" if bold else "normal",
                  parse_math=False)  # fmt: skip


def colour_of(node: Node) -> str:
    """Return the colour of a node: in use, unused, or the root."""
    if node.ref_count:
        return IN_USE
    return ROOT if node.parent is None else UNUSED


def _figure(panels: Sequence[_Panel], rows: Sequence[Row], left_out: int, title: str) -> Figure:
    widths = [max(sum(panel.widths(rows)), 4.0) for panel in panels]
    width = max(6.4, sum(widths) + 0.3 * len(widths))
    handles = _legend(panels, rows)
    wide = min(len(handles), max(1, int(width / 1.9)))
    lines = -(-len(handles) // wide) + bool(left_out)
    figure = style.new_figure(width, (len(rows) + 1) * _ROW + 0.75 + 0.22 * lines)
    spread = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, panel, inches in zip(spread, panels, widths, strict=True):
        panel.draw(axes, rows, inches * (width / (sum(widths) + 0.3 * len(widths))))
    figure.suptitle(title, fontsize=style.TITLE)
    note = f"{counted(left_out, 'node')} left out; + n below: n of them are below this node"
    style.legend_below(figure, handles, most=wide, title=note if left_out else None)
    return figure


def _legend(panels: Sequence[_Panel], rows: Sequence[Row]) -> list[Artist]:
    bad = any(panel.remarks.get(row.number, ("", False))[1] for panel in panels for row in rows)
    looks = [
        ("o", IN_USE, "#333333", "with references"),
        ("o", UNUSED, "#333333", "without references"),
        ("s", "white", "#333333", "in the engine's set of leaves"),
    ]
    if bad:
        several = len(panels) > 1
        looks.append(("o", "white", style.VERMILLION, "gone or wrong" if several else "wrong"))
    return [
        Line2D([], [], linestyle="", marker=marker, markersize=7, markerfacecolor=face,
               markeredgecolor=edge, markeredgewidth=1.8 if edge != "#333333" else 0.9, label=text)
        for marker, face, edge, text in looks
    ]  # fmt: skip


def _indent(rows: Sequence[Row]) -> float:
    """Return the indentation of a level in inches: less if the tree is deep."""
    return min(_INDENT, _TREE / max(1, max((row.depth for row in rows), default=0)))


def _chosen(wanted: Iterable[int], parent: Mapping[int, int | None], limit: int) -> set[int]:
    kept: set[int] = set()
    for number in wanted:
        path = []
        above: int | None = number if number in parent else None
        while above is not None and above not in kept:
            path.append(above)
            above = parent[above]
        if len(kept) + len(path) <= limit:
            kept.update(path)
    return kept


def _fate(old: Node | None, new: Node) -> str:
    """Return how a node changed."""
    if old is None:
        return "new"
    fields = (("refs", "ref_count"), ("page", "page"), ("parent", "parent"))
    pairs = [(name, getattr(old, field), getattr(new, field)) for name, field in fields]
    words = [f"{name} {a} -> {b}" for name, a, b in pairs if a != b]
    words += ["other tokens"] if old.tokens != new.tokens else []
    words += [] if old.leaf == new.leaf else ["now a leaf" if new.leaf else "no longer a leaf"]
    return ", ".join(words)


def _join(
    first: Mapping[int, tuple[str, bool]], wrong: Mapping[int, str]
) -> dict[int, tuple[str, bool]]:
    joined = dict(first)
    for number, text in wrong.items():
        joined[number] = (f"{joined[number][0]}, {text}" if number in joined else text, True)
    return joined


def _nothing(snapshot: Snapshot) -> str:
    return "The trie is empty." if snapshot.nodes else "There is no trie here."
