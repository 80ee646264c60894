"""Snapshots of the cache and what changed between two."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.core.errors import CachelabError
from analysis.core.wording import ranges, short_names
from analysis.runs.tables import to_frame
from analysis.snapshots.diff import Diff
from analysis.snapshots.snapshot import STATES, CacheState, Node, PageContent, Snapshot

ROOT = Node(0, None, None, (), 0, False)


@st.composite
def states(draw: st.DrawFn, pages: int | None = None, stray: bool = True) -> CacheState:
    """Draw any state of a cache, contradictions among them."""
    count = draw(st.integers(0, 20)) if pages is None else pages
    page = st.integers(0, count - 1 + 2 * stray) if count else st.nothing()
    some = st.lists(page, max_size=8) if count else st.just([])
    numbers = draw(st.lists(st.integers(1, 9), unique=True, max_size=6)) if count else []
    nodes = [ROOT]
    for number in numbers:
        parent = draw(st.sampled_from([node.node for node in nodes]))
        references = draw(st.integers(-1, 3))
        nodes.append(Node(number, parent, draw(page), (number,), references, draw(st.booleans())))
    return CacheState(
        page_count=count,
        free=draw(some),
        holdings=draw(st.dictionaries(st.sampled_from(["a", "b", "c"]), some)),
        nodes=tuple(nodes) if draw(st.booleans()) else (),
        duplicates=draw(some),
    )


def snapshot(
    count: int = 8,
    free: list[int] | None = None,
    holdings: dict[str, list[int]] | None = None,
    nodes: tuple[Node, ...] = (),
    duplicates: tuple[int, ...] = (),
    **rest: object,
) -> Snapshot:
    taken = {p for pages in (holdings or {}).values() for p in pages} | {n.page for n in nodes}
    free = [p for p in range(count) if p not in taken] if free is None else free
    return Snapshot(CacheState(count, free, holdings or {}, nodes, duplicates), **rest)  # type: ignore[arg-type]


def node(number: int, page: int, *, parent: int = 0, refs: int = 0, leaf: bool = True) -> Node:
    return Node(number, parent, page, (number, 7), refs, leaf)


# -- states --------------------------------------------------------------------------------


@given(states())
def test_every_page_is_in_exactly_one_state(state: CacheState) -> None:
    one = Snapshot(state)
    assert sum(one.counts.values()) == one.page_count
    listed = [page for name in STATES for page in one.pages(name)]
    assert sorted(listed) == list(range(one.page_count))
    assert {name: len(one.pages(name)) for name in STATES} == one.counts


@given(states())
def test_a_leaked_page_has_no_other_state(state: CacheState) -> None:
    one = Snapshot(state)
    known = {*state.free, *one.holders, *one.node_of_page, *state.duplicates}
    assert one.pages("leaked") == sorted({*range(state.page_count)} - known)


@given(states())
def test_conflicts_are_pages_in_two_states(state: CacheState) -> None:
    one = Snapshot(state)
    in_trie = [n.page for n in state.nodes if n.page is not None]
    free = list(state.free)
    everywhere = {*free, *in_trie, *one.holders}
    expected = {
        page
        for page in everywhere
        if page >= state.page_count
        or free.count(page) > 1
        or in_trie.count(page) > 1
        or (page in free and (page in one.holders or page in in_trie))
    }
    assert set(one.conflict_pages) == expected
    assert bool(one.conflicts) == bool(expected)


def test_conflicts_name_page_and_place() -> None:
    one = snapshot(4, [0, 0, 1, 2, 9], {"a": [1]}, (ROOT, node(1, 2), node(2, 3), node(3, 3)))
    assert tuple(map(str, one.conflicts)) == (
        "Page 0 is 2 times in the free list.",
        "Page 1 is free and held by a.",
        "Page 2 is free and in node 1.",
        "Page 3 is in 2 nodes of the trie.",
        "Page 9 does not exist.",
    )
    assert one.conflict_pages == (0, 1, 2, 3, 9)


@given(states(stray=False))
def test_a_row_gives_the_snapshot_back(state: CacheState) -> None:
    one = Snapshot(state, "after", "a", 3, 0.5, consistent=False)
    [row] = to_frame("snapshots", [one.to_row("trial")]).to_dict("records")
    back = Snapshot.from_row({str(name): value for name, value in row.items()})
    assert np.array_equal(back.states, one.states)
    assert (back.holders, back.nodes, back.counts) == (one.holders, one.nodes, one.counts)
    assert (back.moment, back.request_id, back.seq, back.t_s) == ("after", "a", 3, 0.5)
    assert not back.consistent
    assert back.conflicts == one.conflicts
    assert not back - one or one.conflicts


@pytest.mark.parametrize("nothing", [None, pd.NA, float("nan")])
def test_a_row_may_have_no_time(nothing: object) -> None:
    row = snapshot().to_row() | {"seq": nothing, "t_s": nothing, "request_id": nothing}
    back = Snapshot.from_row(row)
    assert (back.seq, back.t_s, back.request_id) == (None, None, None)


# -- changes -------------------------------------------------------------------------------


@given(states())
def test_nothing_changes_from_a_snapshot_to_itself(state: CacheState) -> None:
    one = Snapshot(state)
    change = one - one
    assert not change
    assert str(change) == "Nothing changed."
    assert change.changed_pages == ()


def moved_on(states: np.ndarray, change: Diff) -> list[int]:
    """Return the states that follow from those before, each page from where the change has it."""
    result = states.tolist()
    for (old, new), pages in change.moved.items():
        for page in pages:
            assert STATES[states[page]] == old
            result[page] = STATES.index(new)
    return result


@given(st.integers(0, 20).flatmap(lambda n: st.tuples(states(n), states(n))))
def test_a_change_leads_from_one_snapshot_to_the_other(pair: tuple[CacheState, CacheState]) -> None:
    before, after = map(Snapshot, pair)
    change = after - before
    assert moved_on(before.states, change) == after.states.tolist()
    assert moved_on(after.states, before - after) == before.states.tolist()
    for request in {*pair[0].holdings, *pair[1].holdings}:
        held = set(pair[0].holdings.get(request, ())) - set(change.lost.get(request, ()))
        held |= set(change.gained.get(request, ()))
        assert held == set(pair[1].holdings.get(request, ()))
    assert {n.node for n in change.created} == {n.node for n in after.nodes} - {
        n.node for n in before.nodes
    }
    assert set(change.leaked) == set(after.pages("leaked")) - set(before.pages("leaked"))
    assert bool(change) == (str(change) != "Nothing changed.")
    assert "  " not in str(change)
    assert str(change).endswith(".")


def test_a_change_is_described_in_sentences() -> None:
    before = snapshot(256)
    free = [p for p in range(256) if p not in (250, 253, 254, 255)]
    after = snapshot(256, free, {"client-0": [253, 254, 255]})
    assert str(after - before) == (
        "3 pages were taken from the pool: 253-255, held by client-0. "
        "Pages in use: 0 -> 3, free pages: 256 -> 252. "
        "1 page leaked: 250 (in the pool before)."
    )
    assert (after - before).leaked == (250,)


def test_leaks_name_the_last_holder_of_the_page() -> None:
    before = snapshot(8, [2, 3, 4, 5, 6], {"a": [0], "b": [1]})
    after = snapshot(8, [2, 3, 4, 5, 6])
    assert "2 pages leaked: 0 last held by a; 1 last held by b, 3 in all." in str(after - before)


def test_pages_change_hands_without_a_change_of_state() -> None:
    before = snapshot(4, holdings={"a": [0, 1]})
    after = snapshot(4, holdings={"a": [1], "b": [0, 1]})
    change = after - before
    assert change.moved == {}
    assert (change.gained, change.lost) == ({"b": (0, 1)}, {"a": (0,)})
    assert change.sentences() == [
        "b came to hold 2 pages: 0-1, shared with a.",
        "a gave up 1 page: 0, still held by b.",
    ]


def test_the_trie_is_described_too() -> None:
    before = snapshot(8, nodes=(ROOT, node(1, 1), node(2, 2), node(3, 3, refs=1)))
    after = snapshot(
        8, nodes=(ROOT, node(1, 1, leaf=False), node(3, 4, refs=2), node(4, 5, parent=1))
    )
    change = after - before
    assert [n.node for n in change.created] == [4]
    assert [n.node for n in change.gone] == [2]
    assert change.references == {3: (1, 2)}
    assert (change.leaves_gained, change.leaves_lost) == ((4,), (1, 2))
    text = str(change)
    for sentence in (
        "1 node is new in the trie: 4 (page 5).",
        "1 node is gone from the trie: 2 (page 2).",
        "Nodes changed: node 3 page 3 -> 4.",
        "References: node 3 1 -> 2.",
        "Became leaves: node 4.",
        "No longer leaves: nodes 1-2.",
    ):
        assert sentence in text
    assert {1, 2, 3, 4, 5} - {1} <= set(change.changed_pages)


def test_duplicates_and_contents_are_described() -> None:
    old = {0: PageContent(0, 1, 0, "x"), 1: PageContent(0, 1, 0, "y")}
    new = old | {1: PageContent(0, 2, 0, "z"), 2: PageContent(0, 2, 0, "w")}
    before = snapshot(8, [3, 4], {"a": [0]}, duplicates=(6,), contents=old)
    after = snapshot(8, [3, 4], {"a": [0]}, duplicates=(7,), contents=new)
    change = after - before
    assert change.rewritten == (1,)
    assert (change.duplicates_gained, change.duplicates_lost) == ((7,), (6,))
    assert "1 page holds other contents: 1." in str(change)
    assert "1 duplicate page was listed to be freed: 7." in str(change)


def test_new_conflicts_and_inconsistent_snapshots_are_reported() -> None:
    before = snapshot(4, [0, 1, 2, 3])
    after = snapshot(4, [0, 1, 2, 3], {"a": [0]}, consistent=False)
    text = str(after - before)
    assert "Conflict: Page 0 is free and held by a." in text
    assert "The second snapshot was taken during an operation of the cache." in text


def test_long_lists_are_cut() -> None:
    before = snapshot(1000, list(range(1000)))
    after = snapshot(1000, list(range(0, 1000, 2)), {f"r{i}": [2 * i + 1] for i in range(400)})
    change = after - before
    assert len(str(change)) < 1000
    assert "and 392 more" in str(change)
    assert "and 92 more" in str(change)
    assert sum(len(pages) for (old, _), pages in change.moved.items() if old == "free") == 500


def test_pools_of_different_sizes_cannot_be_compared() -> None:
    with pytest.raises(
        ValueError, match=r"^These snapshots are of pools of different sizes, 8 and 4"
    ):
        snapshot(4) - snapshot(8)
    with pytest.raises(CachelabError):
        snapshot(4) - snapshot(8)
    with pytest.raises(TypeError):
        snapshot(4) - 3


# -- words ---------------------------------------------------------------------------------


def test_a_snapshot_describes_itself() -> None:
    one = snapshot(8, [5, 6, 7, 7], {"a": [0, 1]}, (ROOT, node(1, 2)), consistent=False)
    assert str(one) == (
        "8 pages: 3 free, 2 live (held by 1 request), 1 cached, 2 leaked; 1 node in the trie, "
        "1 as leaves. It was taken during an operation of the cache, so it may be inconsistent. "
        "In conflict: Page 7 is 2 times in the free list."
    )
    assert len(repr(snapshot(100_000))) < 200


@given(st.sets(st.integers(0, 60)))
def test_ranges_have_every_number_once(numbers: set[int]) -> None:
    text = ranges(numbers, most=100)
    output = []
    for part in text.replace(" and ", ", ").split(", ") if text else []:
        first, _, last = part.partition("-")
        output += range(int(first), int(last or first) + 1)
    assert output == sorted(numbers)


def test_ranges_are_cut() -> None:
    assert ranges([3, 4, 5, 9]) == "3-5 and 9"
    assert ranges([1, 3, 5, 6, 7], most=2) == "1, 3 and 3 more"


@given(st.lists(st.text(min_size=1, max_size=40), unique=True, max_size=6))
def test_short_names_stay_apart(ids: list[str]) -> None:
    names = short_names(ids)
    assert list(names) == ids
    assert len(set(names.values())) == len(ids)


def test_long_names_are_shortened() -> None:
    long = ["8f665f799ddb497786ddb7159ff8b9c5", "30bb32673fc64b1eb18883421cb81105", "client-0"]
    assert list(short_names(long).values()) == ["8f665f79", "30bb3267", "client-0"]
    alike = ["measured-request-00001", "measured-request-00002"]
    assert list(short_names(alike).values()) == ["st-00001", "st-00002"]


def test_a_snapshot_stays_as_it_was() -> None:
    one = snapshot(8, holdings={"a": [1]})
    kept = dataclasses.replace(one.state)
    str(one), one.conflicts, one - one
    assert one.state == kept
