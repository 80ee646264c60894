"""What a correct prefix cache may do, whatever the order of its operations: the sequential model.

Each rule is a sentence about the moment between two steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.interleavings.picture import Picture, prefix_number

if TYPE_CHECKING:
    from analysis.interleavings.stage import Stage

RULES = {
    "raises": "An operation ends without an error, unless there are not enough pages.",
    "refused": "A request gets its pages where enough are free or cached for nobody.",
    "one owner": "A page is free, cached or one request's own, and nothing else besides.",
    "once": "A request's block table has no page twice.",
    "own tokens": "The pages of a request hold its own tokens, each behind its own prefix.",
    "cached tokens": "A cached page holds the tokens that its node stands for.",
    "room": "A request has a page for every position that it writes.",
    "references": "References to the trie are as many as the requests that hold one.",
    "protected": "What a request under way uses of the trie cannot be evicted.",
    "shape": "Nodes are found under their own tokens, and the leaves are those without children.",
    "nothing lost": "Every page is free, cached, set aside or in the hands of a request.",
    "padding page": "Page 0, which padding is written to, is given to nobody.",
    "at rest": "When all have ended, everything that is cached can be evicted, and all is free.",
}
"""The sentence of every rule, by name."""


@dataclass(frozen=True)
class Broken:
    """A rule that does not hold."""

    rule: str
    message: str
    request: str | None = None
    """Who suffers."""
    pages: tuple[int, ...] = ()


def check(picture: Picture) -> list[Broken]:
    """Return every rule that does not hold now, with its first reason."""
    found: dict[str, Broken] = {}
    for ask in (_one_owner, _once, _own_tokens, _room, _lost, _padding):
        for broken in ask(picture):
            found.setdefault(broken.rule, broken)
    if picture.has_trie:
        for ask in (_cached_tokens, _references, _protected, _shape):
            for broken in ask(picture):
                found.setdefault(broken.rule, broken)
    return list(found.values())


def check_at_end(stage: Stage) -> tuple[Broken, ...]:
    """Evict all there is when every request has ended, and count what is free."""
    evict = getattr(stage.cache, "evict_pages", None) or getattr(stage.cache, "_evict_pages", None)
    if evict is not None:
        try:
            evict(stage.page_count)
        except Exception as error:
            return (
                Broken("at rest", f"Evicting all that is cached raises {type(error).__name__}."),
            )
    free = {page.index for page in stage.pool.available_pages}
    missing = {*range(stage.page_count)} - free - stage.picture.kept - {*stage.elsewhere}
    if not missing:
        return ()
    return (
        Broken(
            "at rest",
            f"All have ended and all was evicted, and {_pages(missing)} not free.",
            pages=tuple(sorted(missing)),
        ),
    )


def _one_owner(picture: Picture) -> Iterator[Broken]:
    def twice(pages: list[int], where: str) -> Iterator[Broken]:
        for page, count in Counter(pages).items():
            if count > 1:
                yield Broken("one owner", f"Page {page} is {where} {count} times.", pages=(page,))

    free, users = set(picture.free), picture.users()
    cached = [node.page for node in picture.nodes if node.page is not None]
    yield from twice(picture.free, "in the free list")
    yield from twice(cached, "cached")
    in_trie, aside = set(cached), set(picture.aside)
    for page in sorted(free & in_trie):
        yield Broken("one owner", f"Page {page} is free, and cached.", pages=(page,))
    for page, names in users.items():
        if page in free:
            text = f"Page {page} is free while {' and '.join(names)} still uses it."
            yield Broken("one owner", text, names[0], (page,))
        elif page in aside:
            text = f"Page {page} is set aside to be freed while {' and '.join(names)} uses it."
            yield Broken("one owner", text, names[0], (page,))
        elif len(names) > 1 and page not in in_trie:
            text = f"Page {page} is used by {' and '.join(names)}, and is not cached."
            yield Broken("one owner", text, names[0], (page,))


def _once(picture: Picture) -> Iterator[Broken]:
    for name, table in picture.uses.items():
        for page, count in Counter(table).items():
            if count > 1:
                text = f"The block table of {name} has page {page} {count} times: {table}."
                yield Broken("once", text, name, (page,))


def _own_tokens(picture: Picture) -> Iterator[Broken]:
    stride = len(picture.content[0])
    for name, table in picture.uses.items():
        tokens = picture.tokens[name]
        for position in range(min(picture.flown.get(name, 0), len(table) * stride)):
            block, slot = divmod(position, stride)
            page = table[block]
            if picture.content[page][slot] != prefix_number(tokens[: position + 1]):
                text = f"Page {page} of {name} does not hold its position {position} any more."
                yield Broken("own tokens", text, name, (page,))


def _cached_tokens(picture: Picture) -> Iterator[Broken]:
    for node in picture.nodes:
        if node.page is None:
            continue
        first = len(node.path) - node.length
        for slot in range(node.length):
            if picture.content[node.page][slot] != prefix_number(node.path[: first + slot + 1]):
                text = f"Page {node.page} is cached for tokens that it does not hold."
                yield Broken("cached tokens", text, pages=(node.page,))
                break


def _room(picture: Picture) -> Iterator[Broken]:
    for name, position in picture.outside_room.items():
        text = f"{name} has no page for its position {position}, and writes to the padding page."
        yield Broken("room", text, name, (0,))


def _references(picture: Picture) -> Iterator[Broken]:
    everything = [*picture.nodes, *picture.unreachable]
    for node in everything:
        if node.refs < 0:
            pages = () if node.page is None else (node.page,)
            text = f"{_upper(node.name)} has {node.refs} references."
            yield Broken("references", text, pages=pages)
    owed = picture.references_owed()
    if owed is not None:
        count, low, _ = owed
        holders = [name for name, (_, most) in picture.references.items() if most]
        whose = f"only {' and '.join(holders)} may hold one" if holders else "nobody holds any"
        if count < low:
            whose = f"{' and '.join(holders)} should hold one each"
        yield Broken("references", f"There are {count} references, and {whose}.")


def _protected(picture: Picture) -> Iterator[Broken]:
    for name, table in picture.uses.items():
        for page in table:
            node = picture.cached.get(page)
            if node is not None and node.number not in picture.referred:
                text = f"Page {page}, which {name} uses, can be evicted: nobody refers to its node."
                yield Broken("protected", text, name, (page,))


def _shape(picture: Picture) -> Iterator[Broken]:
    for node in picture.nodes:
        pages = () if node.page is None else (node.page,)
        if not node.sound:
            text = f"{_upper(node.name)} is not under its own tokens, or knows another parent."
            yield Broken("shape", text, pages=pages)
        elif node.page is not None and node.leaf != (node.children == 0):
            text = f"{_upper(node.name)} has {node.children} children, and is" + (
                " in the set of leaves." if node.leaf else " not in the set of leaves."
            )
            yield Broken("shape", text, pages=pages)
    for node in picture.unreachable:
        if node.leaf:
            text = f"{_upper(node.name)} is in the set of leaves, and not in the trie."
            yield Broken("shape", text, pages=() if node.page is None else (node.page,))


def _lost(picture: Picture) -> Iterator[Broken]:
    known = {*picture.free, *picture.kept, *picture.elsewhere, *picture.aside, *picture.cached}
    for pages in picture.holds.values():
        known |= pages
    lost = sorted({*range(picture.page_count)} - known)
    if lost:
        text = f"{_upper(_pages(lost))} in no free list, no request's hands and not cached."
        yield Broken("nothing lost", text, pages=tuple(lost))


def _padding(picture: Picture) -> Iterator[Broken]:
    if picture.padding_given:
        yield Broken("padding page", "A request is given page 0.", pages=(0,))


def _pages(pages: object) -> str:
    numbers = sorted(pages)  # type: ignore[call-overload]
    return f"page{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" + (
        " are" if len(numbers) > 1 else " is"
    )


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
