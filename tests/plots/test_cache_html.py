"""What Jupyter shows of snapshots, changes and recordings."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup

from analysis.jupyter import html_of
from analysis.jupyter.cache_html import change_html, recording_html, snapshot_html
from analysis.snapshots.snapshot import CacheState, Node, Snapshot

TOP = Node(0, None, None, (), 0, False)


def make(count: int, holdings: dict[str, list[int]], *nodes: Node, leaked: int = 0) -> Snapshot:
    held = {p for pages in holdings.values() for p in pages} | {n.page for n in nodes}
    free = [page for page in range(count) if page not in held]
    return Snapshot(CacheState(count, free[leaked:], holdings, (TOP, *nodes) if nodes else ()))


def parsed(html: str) -> Any:
    return BeautifulSoup(html, "html.parser")


def titles(html: str) -> list[str]:
    return [title.get_text() for title in parsed(html).find_all("title")]


def pages_in(html: str) -> list[int]:
    """Pages that the tooltips of a map speak of, in their order."""
    found: list[int] = []
    for title in titles(html):
        match = re.match(r"pages? (\d+)(?:-(\d+))?:", title)
        assert match, title
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def scattered(count: int) -> Snapshot:
    """Pages at random in all states, and with 40 holders: as many runs as there can be."""
    dice = np.random.default_rng(0)
    kinds = dice.integers(0, 43, count)
    kinds[dice.random(count) < 0.5] = 0
    nodes = [Node(0, None, None, (), 0, False)]
    nodes += [Node(i + 1, i // 2, int(p), (i,), 0, True)
              for i, p in enumerate(np.flatnonzero(kinds == 1))]  # fmt: skip
    holdings = {f"client-{k}": np.flatnonzero(kinds == k).tolist() for k in range(2, 42)}
    return Snapshot(CacheState(count, np.flatnonzero(kinds == 0).tolist(), holdings, tuple(nodes)))


def test_every_page_has_a_square_with_a_tooltip() -> None:
    snapshot = make(40, {"a": [1], "b": [1, 2]}, Node(1, 0, 2, (5,), 1, True), leaked=2)
    html = snapshot_html(snapshot)
    assert pages_in(html) == [*range(40)]
    assert titles(html)[:5] == [
        "page 0: leaked",
        "page 1: live, held by a and b",
        "page 2: live, held by b, node 1",
        "page 3: leaked",
        "page 4: free",
    ]
    text = parsed(html).get_text(" ")
    assert "free 36" in " ".join(text.split())
    assert "A: a, 1 page" in " ".join(text.split())
    assert "B: b, 2 pages" in " ".join(text.split())


@pytest.mark.parametrize("count", [1, 256, 257, 1024, 1025, 20_000, 100_000])
def test_any_pool_is_drawn_whole_and_stays_small(count: int) -> None:
    for snapshot in (scattered(count), make(count, {"a": [*range(count // 2)]}, leaked=1)):
        html = snapshot_html(snapshot)
        assert pages_in(html) == [*range(count)]
        assert len(html.encode()) < 300_000


def test_leaked_pages_of_a_large_pool_are_ringed() -> None:
    html = snapshot_html(make(100_000, {"a": [50_000]}, leaked=1))
    assert html.count("<circle") == 1
    assert "page 0: 1 leaked" in titles(html)
    assert "page 50000: 1 live, held by a" in titles(html)


def test_blocks_cover_as_much_as_there_are_pages() -> None:
    html = snapshot_html(make(10_000, {"a": [*range(700)]}, leaked=1))
    sizes = {}
    for path in parsed(html).find_all("path"):
        parts = re.findall(r"h([\d.]+)v([\d.]+)h-", path["d"])
        sizes[path.get_text()] = sum(float(w) * float(h) for w, h in parts)
    whole = sum(sizes.values())
    assert sizes["pages 0-699: 700 live, held by a"] / whole == pytest.approx(0.07, rel=0.02)
    assert sizes["pages 701-9999: 9,299 free"] / whole == pytest.approx(0.93, rel=0.02)


def test_coarse_squares_say_what_is_in_them() -> None:
    snapshot = scattered(100_000)
    shown = dict.fromkeys(("free", "live", "cached", "leaked"), 0)
    for title in titles(snapshot_html(snapshot)):
        for number, state in re.findall(r"([\d,]+) (free|live|cached|leaked)", title):
            shown[state] += int(number.replace(",", ""))
    assert shown == snapshot.counts
    assert re.search(r"A square stands for \d+ pages", snapshot_html(snapshot))


def test_the_trie_is_a_nested_list() -> None:
    nodes = (
        Node(1, 0, 4, (1, 2), 1, False),
        Node(2, 1, 5, (3, 4), 0, False),
        Node(3, 0, 6, (9,), 0, True),
    )
    html = snapshot_html(make(8, {}, *nodes), decode=lambda ids: f"<{'-'.join(map(str, ids))}>")
    outer = parsed(html).find("details").find("ul")
    [root] = outer.find_all("li", recursive=False)
    first, second = root.find("ul").find_all("li", recursive=False)
    assert "node 1" in first.get_text()
    assert "node 2" in first.find("li").get_text()
    assert "childless, but no leaf" in first.find("li").get_text()
    assert "node 3, page 6, 0 references, leaf" in second.get_text()
    assert "<3-4>" in first.get_text()


def test_text_is_escaped_and_no_script_gets_in() -> None:
    evil = "<script>alert('1')</script>&\""
    snapshot = make(8, {evil: [1]}, Node(1, 0, 2, (1,), 0, True))
    html = snapshot_html(snapshot, decode=lambda _: evil)
    html += snapshot_html(make(5000, {evil: [1]}))
    html += change_html(snapshot - make(8, {}))
    html += recording_html(recording([snapshot], faults=[evil]))
    assert "<script" not in html
    assert not parsed(html).find_all(["script", "link", "style", "img", "iframe"])
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_text_has_the_colour_of_the_page() -> None:
    html = snapshot_html(make(8, {}))
    assert {text["fill"] for text in parsed(html).find_all("text")} == {"currentColor"}


def test_tags_are_closed() -> None:
    nodes = [Node(i, dice, i, (i,), 0, False) for i, dice in enumerate([0, 1, 2, 1, 0, 5], 1)]
    nodes[0] = Node(1, 0, 1, (1,), 0, False)
    html = snapshot_html(make(40, {"a": [1]}, *nodes))
    for tag in ("div", "span", "ul", "li", "svg", "details", "text", "rect"):
        assert len(re.findall(rf"<{tag}\b", html)) == html.count(f"</{tag}>"), tag


def test_a_change_has_its_sentences_and_dots() -> None:
    before, after = make(16, {}), make(16, {"a": [3]}, leaked=1)
    html = html_of(after - before)
    sentences = [li.get_text() for li in parsed(html).find_all("li")]
    assert sentences == (after - before).sentences()
    assert html.count("<circle") == 4  # two pages, before and after
    assert "Lower right dot: changed" in html
    assert "16 → 14" in html
    assert "Nothing changed." in change_html(after - after)


def recording(taken: list[Snapshot], faults: list[str] | None = None) -> Any:
    failures = [one for one in taken if one.moment == "failure"]
    return FakeRecording(taken=taken, failures=failures, faults=faults or [])


class FakeRecording(SimpleNamespace):
    def __str__(self) -> str:
        return "3 events, 1 invocations, 2 snapshots (acquire 3)."


def test_a_recording_shows_its_last_snapshot_and_what_went_wrong() -> None:
    failed = make(8, {"a": [1]})
    failed = Snapshot(failed.state, "failure", "a", 4, 1.5)
    html = recording_html(recording([make(8, {}), failed], ["hook: KeyError"]))
    text = parsed(html).get_text(" ")
    assert "3 events" in text
    assert "1 failure seen, the last failure of request a, at 1.500 s" in text
    assert "Could not be recorded: hook: KeyError" in text
    assert "page 1: live, held by a" in titles(html)
    assert "3 events" in recording_html(recording([]))


def test_an_empty_pool_is_said_in_words() -> None:
    assert "The pool has no pages." in html_of(make(0, {}))
