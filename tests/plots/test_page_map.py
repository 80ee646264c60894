"""The content of the page map; a person reviews its looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.core.errors import CachelabError
from analysis.plots.page_map import letters, page_map, plain
from analysis.plots.style import REQUEST_COLOURS, STATE_COLOURS
from analysis.snapshots.snapshot import STATES, CacheState, Node, Snapshot

ROOT = Node(0, None, None, (), 0, False)


def make(count: int, holdings: dict[str, list[int]], *, leaked: int = 0, cached: int = 0,
         **rest: object) -> Snapshot:  # fmt: skip
    held = {page for pages in holdings.values() for page in pages}
    others = [page for page in range(count) if page not in held]
    nodes = [Node(i + 1, 0, page, (i,), 0, True) for i, page in enumerate(others[:cached])]
    free = others[cached + leaked :]
    return Snapshot(CacheState(count, free, holdings, (ROOT, *nodes)), **rest)  # type: ignore[arg-type]


def squares(axes: Axes, state: str) -> set[tuple[int, int]]:
    """Places (column, row) of the squares of a state."""
    return {
        (int(path.vertices[0][0]), int(path.vertices[0][1]))
        for collection in axes.collections
        if isinstance(collection, PolyCollection) and collection.get_label() == state
        for path in collection.get_paths()
    }


def outlined(axes: Axes, colour: str) -> int:
    return sum(
        len(collection.get_paths())
        for collection in axes.collections
        if isinstance(collection, PolyCollection)
        and collection.get_label() not in STATES
        and to_hex(collection.get_edgecolor()[0]) == to_hex(colour)
    )


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def notes(figure: Figure) -> str:
    return figure.legends[0].get_title().get_text()


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def dots(axes: Axes) -> list[int]:
    """Numbers of marks that were scattered, largest first."""
    return sorted(
        (len(c.get_offsets()) for c in axes.collections if not isinstance(c, PolyCollection)),
        reverse=True,
    )


def test_every_page_has_a_square_of_its_state() -> None:
    snapshot = make(40, {"a": [0, 17]}, leaked=3, cached=5)
    figure = page_map(snapshot, columns=10)
    [axes] = figure.axes
    for name in STATES:
        assert squares(axes, name) == {(p % 10, p // 10) for p in snapshot.pages(name)}
    assert legend(figure)[:4] == ["free: 30", "live: 2", "cached: 5", "leaked: 3"]
    assert "A: a, 2 pages" in legend(figure)
    assert outlined(axes, REQUEST_COLOURS[0]) == 2
    assert [str(page) for page in range(40)] == [t for t in texts(axes) if t != "A"]
    assert texts(axes).count("A") == 2
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "10", "20", "30"]
    assert axes.get_xlabel()
    assert axes.get_ylabel()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(1, 400))
def test_all_pages_are_drawn_in_any_number_of_columns(count: int, columns: int) -> None:
    [axes] = page_map(make(count, {}), columns=columns).axes
    assert len(squares(axes, "free")) == count


def test_leaked_pages_strike_the_eye() -> None:
    for count in (300, 5000):
        figure = page_map(make(count, {"a": [count - 1]}, leaked=1))
        [axes] = figure.axes
        assert 1 in dots(axes), "a leaked page has a mark of its own"
    assert "here leaked pages begin" in legend(figure)


def test_shared_pages_are_marked_and_explained() -> None:
    nodes = (ROOT, Node(1, 0, 2, (1,), 1, True))
    snapshot = Snapshot(CacheState(8, [4, 5, 6, 7], {"a": [0, 2], "b": [0, 1]}, nodes))
    figure = page_map(snapshot)
    [axes] = figure.axes
    assert outlined(axes, REQUEST_COLOURS[0]) == 2
    assert outlined(axes, REQUEST_COLOURS[1]) == 2
    assert "A+B" in texts(axes)
    assert "held, and in the trie" in legend(figure)
    assert "a page that several requests hold" in notes(figure)
    assert dots(axes) == [1]


def test_conflicts_are_marked() -> None:
    snapshot = Snapshot(CacheState(4, [0, 1, 2, 3, 3, 77], {"a": [0]}), consistent=False)
    figure = page_map(snapshot)
    assert "in two places at once" in legend(figure)
    assert dots(figure.axes[0]) == [2]
    assert "page 77" in notes(figure)
    assert "during an operation" in notes(figure)


def test_many_requests_are_cut_with_a_note() -> None:
    figure = page_map(make(64, {f"client-{i}": [i] for i in range(30)}))
    assert sum(": client-" in text for text in legend(figure)) == len(REQUEST_COLOURS)
    assert notes(figure).replace("\n", " ").endswith("and 14 more are outlined in grey.")
    assert "AD" in texts(figure.axes[0])


def test_two_maps_mark_what_changed() -> None:
    before = make(32, {"a": [0, 1], "b": [5]})
    after = make(32, {"b": [5, 0], "c": [9]})
    figure = page_map(after, before=before)
    left, right = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("before", "after")
    assert dots(left) == dots(right) == [3]
    assert "changed: 3" in legend(figure)
    assert "live: 3" in legend(figure)
    assert "A: a, 2 -> 0 pages" in legend(figure)
    # The same request has the same colour in both.
    assert outlined(left, REQUEST_COLOURS[1]) == 1
    assert outlined(right, REQUEST_COLOURS[1]) == 2


def test_a_large_pool_is_an_image() -> None:
    snapshot = make(100_000, {"a": [*range(500)]}, cached=1000, leaked=1)
    figure = page_map(snapshot, before=make(100_000, {}))
    left, right = figure.axes
    [image] = right.images
    pixels = image.get_array().reshape(-1, 3)
    for name in STATES:
        colour = [int(STATE_COLOURS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        same = np.isclose(pixels, colour).all(axis=1).sum()
        assert same == snapshot.counts[name]
    assert dots(left) == [1501], "what changes afterwards"
    assert dots(right) == [1], "where leaked pages begin"
    assert "do not distinguish them" in notes(figure)
    assert legend(figure)[0] == "free: 100,000 -> 98,499"


def test_nothing_is_clipped() -> None:
    held = {f"request-{i}-$x_y$-東": [i, i + 8] for i in range(8)}
    for snapshot in (make(24, held, leaked=2), make(1, {}), make(1000, held), make(3000, held)):
        figure = page_map(snapshot, before=snapshot, title="A title")
        figure.canvas.draw()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 > -0.02
        assert box.y0 > -0.02
        assert box.x1 < width + 0.02
        assert box.y1 < height + 0.02


def test_no_pages_are_said_in_words() -> None:
    assert "no pages" in page_map(make(0, {})).texts[0].get_text()


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(CachelabError, match="at least one column, not 0"):
        page_map(make(4, {}), columns=0)
    with pytest.raises(CachelabError, match="different pools"):
        page_map(make(4, {}), before=make(5, {}))


def test_letters_go_on_past_z() -> None:
    assert [letters(i) for i in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


@given(st.text(max_size=30), st.integers(2, 30))
def test_plain_text_is_short_and_of_one_line(text: str, most: int) -> None:
    shown = plain(text, most)
    assert len(shown) <= most
    assert shown.isprintable()
