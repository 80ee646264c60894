"""The sequential model: rules of a correct prefix cache for any order of operations.

The rules hold between two operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from analysis.core.wording import capitalised, counted, listed, numbered
from analysis.interleavings.view import CacheView, prefix_number
from analysis.snapshots.snapshot import Node

RULES = {
    "operation-raises": "An operation ends without an error, unless there are too few pages.",
    "allocation-refused": "A request gets its pages if enough are free or can be evicted.",
    "page-conflict": "A page is either free, cached or owned by one request.",
    "duplicate-page": "A request's block table has no page twice.",
    "overwritten-page": "The pages of a request hold its own tokens, each after its own prefix.",
    "stale-cached-page": "A cached page holds the tokens of its node.",
    "missing-page": "A request has a page for every position that it writes.",
    "reference-count": "The number of references equals the number of requests that hold one.",
    "unprotected-page": "Cached pages that a request uses cannot be evicted.",
    "malformed-trie": "Nodes are under their own tokens, and leaves are nodes without children.",
    "page-leak": "Every page is free, cached, pending to be freed or held by a request.",
    "padding-page-allocated": "Page 0, to which padding is written, is not allocated to a request.",
    "not-quiescent": "When all requests have ended, all pages can be evicted and are then free.",
}
"""The sentence of every rule, by its code."""


@dataclass(frozen=True)
class Violation:
    """A violated rule."""

    rule: str
    message: str
    request: str | None = None
    """The affected request."""
    pages: tuple[int, ...] = ()


def check(view: CacheView) -> list[Violation]:
    """Return every violated rule, with its first violation. Hot path."""
    found: dict[str, Violation] = {}
    for rule in _ALWAYS if not view.state.nodes else (*_ALWAYS, *_WITH_TRIE):
        for violation in rule(view):
            found.setdefault(violation.rule, violation)
    return list(found.values())


def _one_owner(view: CacheView) -> Iterator[Violation]:
    rule, free, users = "page-conflict", set(view.state.free), view.users()
    cached = [node.page for node in view.state.nodes if node.page is not None]
    for pages, where in ((view.state.free, "in the free list"), (cached, "cached")):
        for page in _repeated(pages):
            yield Violation(rule, f"Page {page} is {where} more than once.", pages=(page,))
    for page in sorted(free.intersection(cached)):
        yield Violation(rule, f"Page {page} is both free and cached.", pages=(page,))
    for page, names in users.items():
        owners = listed(names)
        if page in free:
            text = f"Page {page} is free, but still used by {owners}."
        elif page in view.state.duplicates:
            text = f"Page {page} is pending to be freed, but used by {owners}."
        elif len(names) > 1 and page not in view.cached:
            text = f"Page {page} is used by {owners}, but not cached."
        else:
            continue
        yield Violation(rule, text, names[0], (page,))


def _once(view: CacheView) -> Iterator[Violation]:
    for name, table in view.block_tables.items():
        for page in _repeated(table):
            text = f"The block table of {name} has page {page} more than once: {list(table)}."
            yield Violation("duplicate-page", text, name, (page,))


def _own_tokens(view: CacheView) -> Iterator[Violation]:
    stride = len(view.content[0])
    for name, table in view.block_tables.items():
        tokens = view.tokens[name]
        for position in range(min(view.written.get(name, 0), len(table) * stride)):
            block, slot = divmod(position, stride)
            page = table[block]
            if view.content[page][slot] != prefix_number(tokens[: position + 1]):
                text = f"Page {page} of {name} no longer holds position {position}."
                yield Violation("overwritten-page", text, name, (page,))


def _cached_tokens(view: CacheView) -> Iterator[Violation]:
    for node in view.state.nodes:
        if node.page is None:
            continue
        path = view.paths[node.node]
        first = len(path) - len(node.tokens)
        for slot in range(len(node.tokens)):
            if view.content[node.page][slot] != prefix_number(path[: first + slot + 1]):
                text = f"Page {node.page} does not hold the tokens it is cached for."
                yield Violation("stale-cached-page", text, pages=(node.page,))
                break


def _room(view: CacheView) -> Iterator[Violation]:
    for name, position in view.missing_page.items():
        text = f"{name} has no page for position {position} and writes to the padding page."
        yield Violation("missing-page", text, name, (0,))


def _references(view: CacheView) -> Iterator[Violation]:
    for node in (*view.state.nodes, *view.detached):
        if node.ref_count < 0:
            text = f"{_name(node)} has {node.ref_count} references."
            yield Violation("reference-count", text, pages=_pages(node))
    wrong = view.wrong_references()
    if wrong is not None:
        count, low, high = wrong
        correct = str(low) if low == high else f"{low} to {high}"
        text = (
            f"There {'is' if count == 1 else 'are'} {counted(count, 'reference')}, not {correct}."
        )
        yield Violation("reference-count", text)


def _protected(view: CacheView) -> Iterator[Violation]:
    for name, table in view.block_tables.items():
        for page in table:
            node = view.cached.get(page)
            if node is not None and node.node not in view.referenced:
                text = f"Page {page}, used by {name}, can be evicted: its node has no reference."
                yield Violation("unprotected-page", text, name, (page,))


def _shape(view: CacheView) -> Iterator[Violation]:
    wrong = {*view.state.misfiled, *(number for number, _, _ in view.state.misplaced)}
    for node in view.state.nodes:
        children = view.children[node.node]
        if node.node in wrong:
            text = f"{_name(node)} is under wrong tokens, or has a wrong parent."
            yield Violation("malformed-trie", text, pages=_pages(node))
        elif node.page is not None and node.leaf != (children == 0):
            has = "is" if node.leaf else "is not"
            many = counted(children, "child", "children")
            text = f"{_name(node)} has {many} and {has} in the set of leaves."
            yield Violation("malformed-trie", text, pages=_pages(node))
    for node in view.detached:
        if node.leaf:
            text = f"{_name(node)} is in the set of leaves, but not in the trie."
            yield Violation("malformed-trie", text, pages=_pages(node))


def _lost(view: CacheView) -> Iterator[Violation]:
    state = view.state
    known = {*state.free, *view.withheld, *view.reserved, *state.duplicates, *view.cached}
    lost = sorted(set(range(state.page_count)).difference(known, *state.holdings.values()))
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        text = f"{capitalised(numbered('page', lost))} {verb} not free, not cached and not held."
        yield Violation("page-leak", text, pages=tuple(lost))


def _padding(view: CacheView) -> Iterator[Violation]:
    if view.padding_given:
        yield Violation("padding-page-allocated", "Page 0 is allocated to a request.", pages=(0,))


_Rule = Callable[[CacheView], Iterator[Violation]]
_ALWAYS: tuple[_Rule, ...] = (_one_owner, _once, _own_tokens, _room, _lost, _padding)
_WITH_TRIE: tuple[_Rule, ...] = (_cached_tokens, _references, _protected, _shape)


def _repeated(pages: Sequence[int]) -> list[int]:
    if len(set(pages)) == len(pages):
        return []
    return [page for page, count in Counter(pages).items() if count > 1]


def _pages(node: Node) -> tuple[int, ...]:
    return () if node.page is None else (node.page,)


def _name(node: Node) -> str:
    return "The root" if node.page is None else f"The node of page {node.page}"
