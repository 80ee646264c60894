"""Which pages an invocation may name, and which of them it may write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.core.wording import counted
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.shadow import PADDING, UNKNOWN
from analysis.sanitizer.world import PADDING_PAGE, World

_NONE: frozenset[Any] = frozenset()
_PADDING = frozenset([PADDING_PAGE])


def _kind(world: World, page: int) -> str:
    """Return what a page is that does not belong into a row's block table."""
    if not 0 <= page < world.page_count:
        return "no-such-page"
    if page == PADDING_PAGE and page not in world.holders:
        return "padding-page"
    if page in world.free:
        return "free-page"
    if page not in world.holders and (page in world.node_at or page in world.duplicates):
        return "cached-page"
    return "leaked-page" if world.is_lost(page) else "foreign-page"


def _where(world: World, page: int) -> str:
    """Say what a page is, for a sentence that names it."""
    padding = _kind(world, page) == "padding-page"
    return "the padding page" if padding else world.where(page)


class BlockTable(Rule):
    """A row's block table has the pages of its request, each once."""

    name = "block-table-mismatch"
    sentence = "Up to its row's own length a block table has only pages of its request, each once."

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        for row, sequence in passage.known_rows():
            pages, request = passage.pages_of(row), sequence.request_id
            held = world.held.get(request, set())
            if len(set(pages)) == len(pages) and held.issuperset(pages):
                if not world.free.isdisjoint(pages):
                    page = next(page for page in pages if page in world.free)
                    yield Finding(
                        cause="freed-page",
                        message=f"{request} flies in a {invocation.phase} with page {page}, which"
                        " was"
                        " freed.",
                        request_id=request,
                        page=page,
                    )
                if -(-passage.lengths[row] // world.stride) > len(pages):
                    yield Finding(
                        cause="too-short",
                        message=f"The block table of {request} in a {invocation.phase} has"
                        f" {counted(len(pages), 'page')} for"
                        f" {counted(passage.lengths[row], 'token')}.",
                        request_id=request,
                        severity=WRONG_DATA,
                    )
                continue
            strange = [page for page in pages if page not in held]
            if strange:
                page = strange[0]
                holders = sorted(world.holders.get(page, ()))
                yield Finding(
                    cause=_kind(world, page),
                    message=f"The block table of {request} in a {invocation.phase} has page {page}"
                    " at"
                    f" place {pages.index(page)}, which is {_where(world, page)}.",
                    request_id=request,
                    other_request_id=holders[0] if holders else None,
                    page=page,
                    # What lies beyond the pool is certainly nobody's data.
                    severity=AT_RISK if 0 <= page < world.page_count else WRONG_DATA,
                )
            else:
                page = next(p for p in pages if pages.count(p) > 1)
                yield Finding(
                    cause="duplicate-page",
                    message=f"The block table of {request} in a {invocation.phase} has page {page}"
                    f" {pages.count(page)} times.",
                    request_id=request,
                    page=page,
                )


class TablePadding(Rule):
    """What a mask hides is still named: a padded write, or a length too long, would reach it.

    Both releases pad a block table with 0, whole rows too; on 3.1.0 a request may hold a page more
    than its length needs, and the engine lists it.
    """

    name = "block-table-padding"
    sentence = (
        "Beyond its row's own length a block table has only page 0 and further pages that its"
        " request holds, and a padding row's only page 0."
    )

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation, stride = passage.invocation, world.stride
        tables = invocation.tables.tolist()  # a row at a time is quicker in sets than in arrays
        for row, sequence in passage.known_rows():
            rest = {*tables[row][-(-passage.lengths[row] // stride) :]} - _PADDING
            held = world.held.get(sequence.request_id, _NONE)
            if rest and not (rest <= held and rest.isdisjoint(world.free)):
                yield self._beyond(world, passage, row, sequence.request_id)
        for row in range(invocation.real, len(tables)):
            place = next((p for p, page in enumerate(tables[row]) if page != PADDING_PAGE), None)
            if place is not None:
                yield self._in_padding(world, passage, row, place)

    def _beyond(self, world: World, passage: Passage, row: int, request: str) -> Finding:
        table = passage.invocation.tables[row].tolist()
        length = passage.lengths[row]
        blocks = -(-length // world.stride)
        held = world.held.get(request, _NONE)
        places = [place for place in range(blocks, len(table)) if table[place] != PADDING_PAGE]
        strange = [place for place in places if table[place] not in held]
        place = (strange or [place for place in places if table[place] in world.free])[0]
        page = table[place]
        holders = sorted(world.holders.get(page, set()) - {request})
        return Finding(
            cause=_kind(world, page),
            message=f"The block table of {request} in a {passage.invocation.phase} has page {page}"
            " at"
            f" place {place}, beyond the {counted(blocks, 'page')} of its"
            f" {counted(length, 'token')}; the page is {_where(world, page)}.",
            request_id=request,
            other_request_id=holders[0] if holders else None,
            page=page,
        )

    def _in_padding(self, world: World, passage: Passage, row: int, place: int) -> Finding:
        page = int(passage.invocation.tables[row, place])
        holders = sorted(world.holders.get(page, ()))
        return Finding(
            cause="padding-row",
            message=f"Padding row {row} of a {passage.invocation.phase} has page {page} at place"
            f" {place} of its block table, where page {PADDING_PAGE} belongs; the page is"
            f" {_where(world, page)}.",
            request_id=holders[0] if holders else None,
            page=page,
        )


class SharedPages(Rule):
    """A page that others read is not written with anything new."""

    name = "shared-page-write"
    sentence = "What the trie or another request relies on is written only with what it holds."

    def __init__(self) -> None:
        self.rewritten = 0
        """Slots of such pages that were written again with the same prefix: wasted, not wrong."""

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        written = (passage.write_slots // world.stride).tolist()
        for row, pages in enumerate(written):
            request = invocation.request_ids[row] if row < invocation.real else None
            for page in sorted(set(pages)):
                others = world.holders.get(page, _NONE) - {request}
                node = world.nodes.get(world.node_at.get(page, -1))
                if page >= 0 and (others or node is not None):
                    length = 0 if node is None else len(node.tokens)
                    yield from self._one(world, passage, row, page, sorted(others), length)

    def _one(
        self,
        world: World,
        passage: Passage,
        row: int,
        page: int,
        others: list[str],
        published_length: int,
    ) -> Iterator[Finding]:
        mine = passage.write_slots[row] // world.stride == page
        offsets = passage.write_slots[row][mine] % world.stride
        before, now = passage.before[row][mine], passage.write_content[row][mine]
        published = offsets < published_length
        numbers = [s.number for r in others if (s := world.last_of.get(r)) is not None]
        theirs = np.isin(passage.writer_before[row][mine], numbers) & (before > PADDING)
        relied_on = published | theirs
        changed = relied_on & (before != now) & (before != UNKNOWN) & (now != UNKNOWN)
        self.rewritten += int((relied_on & (before == now)).sum())
        if not changed.any():
            return
        invocation = passage.invocation
        request = invocation.request_ids[row] if row < invocation.real else None
        offset = int(offsets[np.flatnonzero(changed)[0]])
        cached = bool(published[changed].any())
        relying = f"node {world.node_at[page]} of the trie" if cached else " and ".join(others)
        yield Finding(
            cause="padding-row" if request is None else "request-row",
            message=f"{'A padding row' if request is None else request} writes slot {offset} of"
            f" page {page} in a {invocation.phase}, on which {relying} relies.",
            request_id=others[0] if others and request is None else request,
            other_request_id=others[0] if others and request is not None else None,
            page=page,
            slot=offset,
        )
