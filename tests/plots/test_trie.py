"""The content of the drawings of the trie; a person reviews their looks."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.plots.style import VERMILLION
from analysis.plots.trie import IN_USE, NODES, ROOT, UNUSED, defects, tree_rows, trie, tries
from analysis.snapshots.snapshot import CacheState, Node, Snapshot

TOP = Node(0, None, None, (), 0, False)


def snap(*nodes: Node, free: tuple[int, ...] = ()) -> Snapshot:
    return Snapshot(CacheState(1000, free, {}, (TOP, *nodes)))


def node(number: int, parent: int = 0, *, refs: int = 0, leaf: bool = True) -> Node:
    return Node(number, parent, number + 100, (number, 7, 8), refs, leaf)


def large(count: int, seed: int = 0) -> Snapshot:
    dice = random.Random(seed)
    parents = [dice.randrange(number) for number in range(1, count)]
    return snap(
        *(node(i + 1, parent, leaf=i + 1 not in parents) for i, parent in enumerate(parents))
    )


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def marks(axes: Axes) -> list[tuple[str, str]]:
    """Fill and edge of each node that is drawn, from the top."""
    return [
        (to_hex(c.get_facecolor()[0]).upper(), to_hex(c.get_edgecolor()[0]).upper())
        for c in axes.collections
    ]


def note(figure: Figure) -> str:
    return figure.legends[0].get_title().get_text()


def test_a_node_shows_page_references_and_tokens() -> None:
    figure = trie(snap(node(1, refs=2), node(2)))
    [axes] = figure.axes
    assert [fill for fill, _ in marks(axes)] == [ROOT, IN_USE, UNUSED]
    assert "  101     2  1 7 8" in texts(axes)
    assert "  102     0  2 7 8" in texts(axes)
    assert "1" in texts(axes)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["with references", "without references", "in the engine's set of leaves"]


def test_tokens_are_decoded_if_somebody_can() -> None:
    [axes] = trie(snap(node(1)), decode=lambda ids: f"$a$\n{len(ids)}東").axes
    assert any(text.endswith(r"$a$\n3\u6771") for text in texts(axes))


def test_many_tokens_are_cut() -> None:
    one = dataclasses.replace(node(1), tokens=tuple(range(1000, 1016)))
    [axes] = trie(snap(one)).axes
    assert any(text.endswith("1000 1001 1002 1003 1004 …") for text in texts(axes))


def test_leaves_are_squares() -> None:
    [axes] = trie(snap(node(1, leaf=False), node(2, 1))).axes
    corners = [len(c.get_paths()[0].vertices) for c in axes.collections]
    assert corners[0] == corners[1] > 6, "circles"
    assert corners[2] <= 5, "a square"


def test_what_is_wrong_is_named() -> None:
    broken = snap(
        node(1, leaf=True),
        node(2, 1, leaf=False),
        node(3, 77),
        node(4, refs=-1),
        dataclasses.replace(node(5), page=104),
        node(6),
        free=(106,),
    )
    assert defects(broken) == {
        1: "leaf with children",
        2: "childless, but no leaf",
        3: "parent 77 is gone",
        4: "negative references, page of two nodes",
        5: "page of two nodes",
        6: "its page is free",
    }
    [axes] = trie(broken).axes
    assert {"leaf with children", "childless, but no leaf"} <= set(texts(axes))
    assert [edge for _, edge in marks(axes)].count(VERMILLION) == 6
    assert defects(snap(node(1, leaf=False), node(2, 1))) == {}
    assert defects(snap()) == {}, "a root without children is as it should be"


@given(st.integers(1, 150), st.integers(0, 5), st.integers(1, 80))
def test_a_cut_tree_keeps_ancestors_and_counts_the_rest(count: int, seed: int, limit: int) -> None:
    nodes = large(count, seed).nodes
    rows, left_out = tree_rows(nodes, [count - 1], limit)
    assert len(rows) == min(count, limit) or len(rows) < limit
    assert len(rows) + left_out == count
    assert sum(row.hidden for row in rows) == left_out
    parents = {n.node: n.parent for n in nodes}
    for line, row in enumerate(rows):
        if row.parent is None:
            assert row.number == 0
        else:
            assert row.parent < line
            assert rows[row.parent].number == parents[row.number]
            assert rows[row.parent].depth == row.depth - 1


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), unique_by=lambda t: t[0]))
def test_no_trie_is_too_broken_to_be_drawn(pairs: list[tuple[int, int]]) -> None:
    nodes = [Node(number, parent, number, (), 0, True) for number, parent in pairs]
    rows, left_out = tree_rows(nodes)
    assert sorted(row.number for row in rows) == sorted(number for number, _ in pairs)
    assert left_out == 0


def test_of_many_nodes_the_telling_ones_are_drawn() -> None:
    chosen = node(500, refs=3)
    figure = trie(snap(*large(400).nodes[1:], chosen))
    [axes] = figure.axes
    assert len(marks(axes)) == NODES
    assert "500" in texts(axes)
    assert note(figure).startswith(f"{401 - NODES} nodes left out")


def test_two_tries_show_what_became_of_each_node() -> None:
    before = snap(node(1, refs=1), node(2), node(3))
    after = snap(node(1, refs=2, leaf=False), node(3), node(4, 1))
    left, right = tries(before, after).axes
    assert "gone afterwards" in texts(left)
    assert "refs 1 -> 2, no longer a leaf" in texts(right)
    assert "new" in texts(right)
    assert len(marks(left)) == len(marks(right)) == 4
    # A node that is in both is on the same line.
    assert lines(left)["3"] == lines(right)["3"]
    assert left.get_title(loc="left") == "before"


def lines(axes: Axes) -> dict[str, float]:
    return {text.get_text(): text.get_position()[1] for text in axes.texts}


def test_the_first_trie_may_be_empty() -> None:
    left, right = tries(snap(), snap(node(1))).axes
    assert "The trie is empty." in texts(left)
    assert len(marks(right)) == 2


def test_changed_nodes_come_first_where_there_are_many() -> None:
    before = large(400)
    changed = [dataclasses.replace(n, ref_count=int(n.node == 399)) for n in before.nodes]
    figure = tries(before, snap(*changed[1:]))
    assert "refs 0 -> 1" in texts(figure.axes[1])
    assert note(figure).startswith("340 nodes left out")


def test_no_trie_is_said_in_words() -> None:
    none = Snapshot(CacheState(4, [], {}))
    assert trie(none).texts[0].get_text() == "There is no trie here."
    assert trie(snap()).texts[0].get_text() == "The trie is empty."
    assert tries(none, none).texts[0].get_text() == "There is no trie here."


@pytest.mark.parametrize("count", [2, 20, 400])
def test_nothing_is_clipped(count: int) -> None:
    one, other = large(count), large(count, seed=1)
    chain = snap(*(node(i, i - 1, leaf=i % 2 == 0) for i in range(1, min(count, 50))))
    for figure in (trie(one), tries(one, other), trie(chain), tries(chain, one)):
        figure.canvas.draw()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 > -0.02
        assert box.y0 > -0.02
        assert box.x1 < width + 0.02
        assert box.y1 < height + 0.02
