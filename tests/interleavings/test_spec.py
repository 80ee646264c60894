"""Every rule of the sequential model can be broken, and holds for a cache that is right."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.interleavings.picture import NodeView, Picture, prefix_number
from analysis.interleavings.spec import RULES, check

_TOKENS = [1, 2, 3, 4, 5]


def node(
    number: int, parent: NodeView | None, page: int | None, path: list[int], **more: Any
) -> Any:
    view = NodeView(
        node=SimpleNamespace(), number=number, parent=parent, page=page, path=tuple(path),
        length=2 if page is not None else 0, refs=0, leaf=False, children=0, sound=True,
    )  # fmt: skip
    return replace(view, **more)


def content(pages: int) -> list[list[int | None]]:
    held: list[list[int | None]] = [[None, None] for _ in range(pages)]
    for page, first in ((5, 0), (4, 2)):
        held[page] = [prefix_number(_TOKENS[: first + slot + 1]) for slot in (0, 1)]
    held[3] = [prefix_number(_TOKENS), None]
    return held


ROOT = node(0, None, None, [], children=1)
ONE = node(1, ROOT, 5, [1, 2], children=1)
TWO = node(2, ONE, 4, [1, 2, 3, 4], refs=1, leaf=True)
RIGHT = Picture(
    page_count=6,
    free=[0, 1],
    kept=set(),
    elsewhere=[2],
    nodes=[ROOT, ONE, TWO],
    unreachable=[],
    aside=[],
    uses={"A": [5, 4, 3]},
    found=set(),
    holds={"A": {5, 4, 3}},
    references={"A": (1, 1)},
    tokens={"A": _TOKENS},
    flown={"A": 5},
    content=content(6),
    outside_room={},
    padding_given=False,
    has_trie=True,
)
"""A has two cached pages and one of its own; page 2 is in another's hands, 0 and 1 are free."""


def changed(page: int, slot: int, value: int | None) -> list[list[int | None]]:
    held = content(6)
    held[page][slot] = value
    return held


BROKEN = {
    "free twice": (replace(RIGHT, free=[0, 1, 1]), {"one owner"}),
    "free and used": (replace(RIGHT, free=[0, 1, 3]), {"one owner"}),
    "free and cached": (replace(RIGHT, free=[0, 1, 4]), {"one owner"}),
    "set aside and used": (replace(RIGHT, aside=[3]), {"one owner"}),
    "cached twice": (
        replace(RIGHT, nodes=[ROOT, ONE, replace(TWO, page=5)], uses={}),
        {"one owner", "cached tokens"},
    ),
    "in two hands": (
        replace(RIGHT, uses={"A": [5, 4, 3], "B": [3]}, tokens={"A": _TOKENS, "B": []}),
        {"one owner"},
    ),
    "twice in a table": (
        replace(RIGHT, uses={"A": [5, 4, 4]}, flown={"A": 4}),
        {"once"},
    ),
    "overwritten": (replace(RIGHT, content=changed(3, 0, -1)), {"own tokens"}),
    "a cached page overwritten": (
        replace(RIGHT, content=changed(4, 1, -1)),
        {"own tokens", "cached tokens"},
    ),
    "no room": (replace(RIGHT, outside_room={"A": 6}), {"room"}),
    "a reference too many": (
        replace(RIGHT, nodes=[ROOT, ONE, replace(TWO, refs=2)]),
        {"references"},
    ),
    "a reference too few": (
        replace(RIGHT, nodes=[ROOT, ONE, replace(TWO, refs=0)]),
        {"references", "protected"},
    ),
    "a reference too high up": (
        replace(RIGHT, nodes=[ROOT, replace(ONE, refs=1), replace(TWO, refs=0)]),
        {"protected"},
    ),
    "below nothing": (
        replace(RIGHT, nodes=[ROOT, replace(ONE, refs=-1), replace(TWO, refs=2)]),
        {"references"},
    ),
    "an inner leaf": (replace(RIGHT, nodes=[ROOT, replace(ONE, leaf=True), TWO]), {"shape"}),
    "no leaf": (replace(RIGHT, nodes=[ROOT, ONE, replace(TWO, leaf=False)]), {"shape"}),
    "under another key": (replace(RIGHT, nodes=[ROOT, ONE, replace(TWO, sound=False)]), {"shape"}),
    "an orphaned leaf": (
        replace(RIGHT, unreachable=[node(3, None, 2, [8, 9], leaf=True)]),
        {"shape"},
    ),
    "lost": (replace(RIGHT, elsewhere=[]), {"nothing lost"}),
    "padding": (replace(RIGHT, padding_given=True), {"padding page"}),
}


def test_a_cache_that_is_right_breaks_nothing() -> None:
    assert check(RIGHT) == []
    assert check(replace(RIGHT, free=[1], kept={0})) == []  # kept out of the pool by a treatment
    one_more = {"A": (1, 1), "B": (0, 1)}  # who has looked up may hold a reference, or not
    assert check(replace(RIGHT, references=one_more)) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_told_by_name(name: str) -> None:
    picture, rules = BROKEN[name]
    found = check(picture)
    assert {broken.rule for broken in found} == rules
    assert all(broken.message.endswith(".") for broken in found)


def test_each_rule_is_tried_here_or_on_a_live_cache() -> None:
    tried = set().union(*(rules for _, rules in BROKEN.values()))
    assert set(RULES) - tried == {"raises", "refused", "at rest"}


def test_pages_that_a_correct_cache_could_give() -> None:
    # A's own pages, and what it refers to, are not for others; free ones are.
    assert RIGHT.free_or_evictable("A") == 2
    stranger = {**RIGHT.tokens, "B": [7, 8]}
    assert replace(RIGHT, tokens=stranger).free_or_evictable("B") == 2
    unused = replace(RIGHT, tokens=stranger, uses={}, holds={}, references={})
    idle = replace(unused, nodes=[ROOT, ONE, replace(TWO, refs=0)])
    assert idle.free_or_evictable("B") == 4
    assert replace(idle, found={5, 4}).free_or_evictable("B") == 2
    assert idle.free_or_evictable("A") == 2  # its own prefix is what it came for
    # A reference that nobody holds keeps nothing by right.
    assert unused.free_or_evictable("B") == 4
