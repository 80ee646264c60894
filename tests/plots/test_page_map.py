"""The content of the page map; a person reviews its looks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.core.errors import CachelabError
from analysis.core.wording import plain
from analysis.jupyter import html_of
from analysis.jupyter.page_map import CONFLICT_COLOUR, FILLS, letters, maps_of
from analysis.plots.style import GREY, REQUEST_COLOURS, STATE_COLOURS, VERMILLION
from analysis.snapshots.snapshot import STATES, CacheState, Node, Snapshot

ROOT = Node(0, None, None, (), 0, False)


def make(count: int, holdings: dict[str, list[int]], *, leaked: int = 0, cached: int = 0,
         **rest: object) -> Snapshot:  # fmt: skip
    held = {page for pages in holdings.values() for page in pages}
    others = [page for page in range(count) if page not in held]
    nodes = [Node(i + 1, 0, page, (i,), 0, True) for i, page in enumerate(others[:cached])]
    free = others[cached + leaked :]
    return Snapshot(CacheState(count, free, holdings, (ROOT, *nodes)), **rest)  # type: ignore[arg-type]


class Shown:
    """The maps of what Jupyter shows of a value, and the words around them."""

    def __init__(self, value: object) -> None:
        soup: Any = BeautifulSoup(html_of(value), "html.parser")
        self.maps = soup.select("figure svg")
        self.captions = [caption.get_text() for caption in soup.find_all("figcaption")]
        for figure in soup.find_all("figure"):
            figure.extract()
        self.words = " ".join(soup.get_text(" ").split())


def squares(svg: Any, state: str) -> set[tuple[int, int]]:
    """Places (column, row) of the squares of a state, of 28 pixels after a margin of 40."""
    fill = dict(re.findall(r'([\w-]+)="([^"]*)"', FILLS[state]))["fill"]
    return {
        ((int(rect["x"]) - 41) // 28, (int(rect["y"]) - 1) // 28)
        for rect in svg.find_all("rect")
        if rect["fill"] == fill
    }


def outlined(svg: Any, colour: str) -> int:
    return sum(rect.get("stroke") == colour for rect in svg.find_all("rect", fill="none"))


def texts(svg: Any) -> list[str]:
    """What stands in the squares, without the numbers at the left of the rows."""
    return [text.get_text() for text in svg.find_all("text") if text["text-anchor"] == "middle"]


def dots(svg: Any, colour: str) -> int:
    return len(svg.find_all("circle", fill=colour))


def rings(svg: Any, colour: str) -> int:
    return len(svg.find_all("circle", fill="none", stroke=colour))


def test_every_page_has_a_square_of_its_state() -> None:
    snapshot = make(40, {"a": [0, 17]}, leaked=3, cached=5)
    shown = Shown(snapshot)
    [svg] = shown.maps
    for name in STATES:
        assert squares(svg, name) == {(p % 16, p // 16) for p in snapshot.pages(name)}
    assert "free 30 live 2 cached 5 leaked 3" in shown.words
    assert "A: a, 2 pages" in shown.words
    assert outlined(svg, REQUEST_COLOURS[0]) == 2
    assert [str(page) for page in range(40)] == [t for t in texts(svg) if t != "A"]
    assert texts(svg).count("A") == 2
    labels = [t.get_text() for t in svg.find_all("text") if t["text-anchor"] == "end"]
    assert labels == ["0", "16", "32"]
    assert svg["aria-label"] == "page map: 30 free, 2 live, 5 cached, 3 leaked"


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 1024))
def test_all_pages_are_drawn_inside_the_map(count: int) -> None:
    [drawn] = maps_of(make(count, {})).maps
    assert len({(square["x"], square["y"]) for square in drawn.squares}) == count
    for square in drawn.squares:
        assert square["x"] + square["cell"] < drawn.width
        assert square["y"] + square["cell"] < drawn.height


def test_leaked_pages_strike_the_eye() -> None:
    [svg] = Shown(make(300, {"a": [299]}, leaked=1)).maps
    assert len(svg.find_all("path", stroke="#000", fill=None)) == 1, "a mark of its own"
    shown = Shown(make(5000, {"a": [4999]}, leaked=1))
    assert rings(shown.maps[0], VERMILLION) == 1
    assert "here leaked pages begin" in shown.words


def test_shared_pages_are_marked_and_explained() -> None:
    nodes = (ROOT, Node(1, 0, 2, (1,), 1, True))
    shown = Shown(Snapshot(CacheState(8, [4, 5, 6, 7], {"a": [0, 2], "b": [0, 1]}, nodes)))
    [svg] = shown.maps
    assert outlined(svg, REQUEST_COLOURS[0]) == 2
    assert outlined(svg, REQUEST_COLOURS[1]) == 2
    assert "A+B" in texts(svg)
    assert "held by a request and in the trie" in shown.words
    assert "several requests hold it" in shown.words
    assert len(svg.find_all("path", fill=STATE_COLOURS["cached"])) == 1


def test_conflicts_are_marked() -> None:
    state = CacheState(4, [0, 1, 2, 3, 3, 77], {"a": [0]})
    shown = Shown(Snapshot(state, consistent=False))
    assert "Upper left dot: in two places at once" in shown.words
    assert dots(shown.maps[0], CONFLICT_COLOUR) == 2
    assert "without being in the pool: page 77" in shown.words
    assert "during an operation" in shown.words
    large = Shown(Snapshot(CacheState(5000, [*range(5000), 3], {"a": [9]})))
    assert rings(large.maps[0], CONFLICT_COLOUR) == 2
    assert "Purple ring: in two places at once" in large.words


def test_many_requests_are_cut_with_a_note() -> None:
    shown = Shown(make(64, {f"client-{i}": [i] for i in range(30)}))
    assert len(re.findall(r"\w+: client-\d+, 1 page", shown.words)) == len(REQUEST_COLOURS)
    assert "AB client-27" not in shown.words
    assert "and 14 more" in shown.words
    assert "In grey: I client-8, J client-9" in shown.words
    assert outlined(shown.maps[0], GREY) == 30 - len(REQUEST_COLOURS)
    assert "AD" in texts(shown.maps[0])


def test_two_maps_mark_what_changed() -> None:
    before = make(32, {"a": [0, 1], "b": [5]})
    after = make(32, {"b": [5, 0], "c": [9]})
    shown = Shown(after - before)
    left, right = shown.maps
    assert shown.captions == ["before", "after"]
    assert dots(left, "#000") == dots(right, "#000") == 3
    assert "Lower right dot: changed (3 pages)" in shown.words
    assert "live 3" in shown.words
    assert "A: a, 2 → 0 pages" in shown.words
    # The same request has the same colour in both.
    assert outlined(left, REQUEST_COLOURS[1]) == 1
    assert outlined(right, REQUEST_COLOURS[1]) == 2


def test_two_maps_say_when_they_were_taken() -> None:
    before = make(8, {}, moment="before", request_id="r1", t_s=0.5)
    after = make(8, {"r1": [2]}, moment="after", request_id="r1", t_s=1.25)
    assert Shown(after - before).captions == [
        "before request r1, at 0.500 s",
        "after request r1, at 1.250 s",
    ]


def test_a_large_pool_is_drawn_in_blocks() -> None:
    snapshot = make(100_000, {"a": [*range(500)]}, cached=1000, leaked=1)
    shown = Shown(snapshot - make(100_000, {}))
    _, right = shown.maps
    counts = {}
    for path in right.find_all("path"):
        [(number, state)] = re.findall(r"([\d,]+) (free|live|cached|leaked)", path.get_text())
        assert all(f'{k}="{path[k]}"' in FILLS[state] for k in ("fill",)), state
        counts[state] = counts.get(state, 0) + int(number.replace(",", ""))
    assert counts == snapshot.counts
    assert "Changed pages: 0-1500." in shown.words
    assert rings(right, VERMILLION) == 1, "where leaked pages begin"
    assert "1 request held pages" in shown.words
    assert "free 100,000 → 98,499" in shown.words


def test_nothing_is_clipped() -> None:
    held = {f"request-{i}-$x_y$-東": [i, i + 8] for i in range(8)}
    for snapshot in (make(24, held, leaked=2), make(1, {}), make(1000, held), make(3000, held)):
        for drawn in maps_of(snapshot, snapshot, changed=(0,)).maps:
            ends = [(s["x"] + s["cell"], s["y"] + s["cell"]) for s in drawn.squares]
            ends += [(r["x"] + 6, r["y"] + 6) for r in drawn.rings]
            for block in drawn.blocks:
                for x, y, w, h in re.findall(
                    r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", block["path"]
                ):
                    ends.append((float(x) + float(w), float(y) + float(h)))
            assert max(x for x, _ in ends) < drawn.width
            assert max(y for _, y in ends) < drawn.height


def test_no_pages_are_said_in_words() -> None:
    assert "no pages" in Shown(make(0, {})).words


def test_maps_of_different_pools_are_refused() -> None:
    with pytest.raises(CachelabError, match="pools of different sizes"):
        maps_of(make(5, {}), make(4, {}))


def test_letters_go_on_past_z() -> None:
    assert [letters(i) for i in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


@given(st.text(max_size=30), st.integers(2, 30))
def test_plain_text_is_short_and_of_one_line(text: str, most: int) -> None:
    shown = plain(text, most)
    assert len(shown) <= most
    assert shown.isprintable()
