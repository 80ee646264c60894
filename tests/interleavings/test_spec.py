"""Every rule of the sequential model can be broken, and holds for a cache that is right."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from analysis.interleavings.spec import RULES, check
from analysis.interleavings.view import CacheView, prefix_number
from analysis.snapshots.snapshot import CacheState, Node

_TOKENS = [1, 2, 3, 4, 5]
_STATE = {field.name for field in fields(CacheState)}


def content(pages: int = 6) -> list[list[int | None]]:
    held: list[list[int | None]] = [[None, None] for _ in range(pages)]
    for page, first in ((5, 0), (4, 2)):
        held[page] = [prefix_number(_TOKENS[: first + slot + 1]) for slot in (0, 1)]
    held[3] = [prefix_number(_TOKENS), None]
    return held


ROOT = Node(0, None, None, (), 0, leaf=False)
ONE = Node(1, 0, 5, (1, 2), 0, leaf=False)
TWO = Node(2, 1, 4, (3, 4), 1, leaf=True)
RIGHT = CacheView(
    CacheState(page_count=6, free=[0, 1], holdings={"A": [5, 4, 3]}, nodes=(ROOT, ONE, TWO)),
    block_tables={"A": [5, 4, 3]},
    tokens={"A": _TOKENS},
    written={"A": 5},
    content=content(),
    references={"A": (1, 1)},
    reserved=[2],
)
"""A has two cached pages and one of its own; page 2 is another's, 0 and 1 are free."""


def but(view: CacheView = RIGHT, **changes: Any) -> CacheView:
    """Return a view with other values, of its state or its own."""
    state = {name: changes.pop(name) for name in _STATE & changes.keys()}
    return replace(view, state=replace(view.state, **state), **changes)


def changed(page: int, slot: int, value: int | None) -> list[list[int | None]]:
    held = content()
    held[page][slot] = value
    return held


BROKEN = {
    "free twice": (but(free=[0, 1, 1]), {"page-conflict"}),
    "free and used": (but(free=[0, 1, 3]), {"page-conflict"}),
    "free and cached": (but(free=[0, 1, 4]), {"page-conflict"}),
    "pending and used": (but(duplicates=[3]), {"page-conflict"}),
    "cached twice": (
        but(nodes=(ROOT, ONE, replace(TWO, page=5)), block_tables={}),
        {"page-conflict", "stale-cached-page"},
    ),
    "held twice": (
        but(block_tables={"A": [5, 4, 3], "B": [3]}, tokens={"A": _TOKENS, "B": []}),
        {"page-conflict"},
    ),
    "twice in a table": (but(block_tables={"A": [5, 4, 4]}, written={"A": 4}), {"duplicate-page"}),
    "overwritten": (but(content=changed(3, 0, -1)), {"overwritten-page"}),
    "a cached page overwritten": (
        but(content=changed(4, 1, -1)),
        {"overwritten-page", "stale-cached-page"},
    ),
    "no room": (but(missing_page={"A": 6}), {"missing-page"}),
    "a reference too many": (
        but(nodes=(ROOT, ONE, replace(TWO, ref_count=2))),
        {"reference-count"},
    ),
    "a reference too few": (
        but(nodes=(ROOT, ONE, replace(TWO, ref_count=0))),
        {"reference-count", "unprotected-page"},
    ),
    "a reference too high up": (
        but(nodes=(ROOT, replace(ONE, ref_count=1), replace(TWO, ref_count=0))),
        {"unprotected-page"},
    ),
    "below nothing": (
        but(nodes=(ROOT, replace(ONE, ref_count=-1), replace(TWO, ref_count=2))),
        {"reference-count"},
    ),
    "an inner leaf": (but(nodes=(ROOT, replace(ONE, leaf=True), TWO)), {"malformed-trie"}),
    "no leaf": (but(nodes=(ROOT, ONE, replace(TWO, leaf=False))), {"malformed-trie"}),
    "under another key": (but(misfiled=[2]), {"malformed-trie"}),
    "another parent": (but(misplaced=[(2, -1, 1)]), {"malformed-trie"}),
    "an orphaned leaf": (
        but(detached=[Node(3, None, 2, (8, 9), 0, leaf=True)]),
        {"malformed-trie"},
    ),
    "lost": (but(reserved=[]), {"page-leak"}),
    "padding": (but(padding_given=True), {"padding-page-allocated"}),
}


def test_a_cache_that_is_right_breaks_nothing() -> None:
    assert check(RIGHT) == []
    assert check(but(free=[1], withheld=frozenset({0}))) == []
    one_more = {"A": (1, 1), "B": (0, 1)}  # who has looked up may hold a reference, or not
    assert check(but(references=one_more)) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_violation_has_the_name_of_its_rule(name: str) -> None:
    view, rules = BROKEN[name]
    found = check(view)
    assert {violation.rule for violation in found} == rules
    assert all(violation.message.endswith(".") for violation in found)


def test_each_rule_is_tried_here_or_on_a_live_cache() -> None:
    tried = set().union(*(rules for _, rules in BROKEN.values()))
    assert set(RULES) - tried == {"operation-raises", "allocation-refused", "not-quiescent"}


def test_pages_that_a_correct_cache_could_give() -> None:
    # A's own pages, and what it refers to, are not for others; free ones are.
    assert RIGHT.free_or_evictable("A") == 2
    stranger = {**RIGHT.tokens, "B": [7, 8]}
    assert but(tokens=stranger).free_or_evictable("B") == 2
    unused = but(tokens=stranger, block_tables={}, holdings={}, references={})
    idle = but(unused, nodes=(ROOT, ONE, replace(TWO, ref_count=0)))
    assert idle.free_or_evictable("B") == 4
    assert but(idle, looked_up=frozenset({5, 4})).free_or_evictable("B") == 2
    assert idle.free_or_evictable("A") == 2  # its own prefix is what it came for
    # A reference that no request holds protects nothing.
    assert unused.free_or_evictable("B") == 4
