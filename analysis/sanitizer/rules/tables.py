"""Rules about the pages that an invocation may reference and write."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import numpy as np

from analysis.core.wording import counted
from analysis.recording.writes import PADDING_PAGE
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.rules.base import Rule, about, each
from analysis.sanitizer.shadow import PADDING, UNKNOWN
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep

_NONE: frozenset[Any] = frozenset()
_PADDING = frozenset([PADDING_PAGE])


def _kind(state: EngineState, page: int) -> str:
    """Return the cause for a page that must not be in a row's block table."""
    if not 0 <= page < state.page_count:
        return "no-such-page"
    if page == PADDING_PAGE and page not in state.holders:
        return "padding-page"
    if page in state.free:
        return "free-page"
    if page not in state.holders and (page in state.node_at or page in state.duplicates):
        return "cached-page"
    return "leaked-page" if state.is_leaked(page) else "foreign-page"


def _where(state: EngineState, page: int) -> str:
    padding = _kind(state, page) == "padding-page"
    return "the padding page" if padding else state.where(page)


def _reference(
    state: EngineState, step: ShadowStep, row: int, place: int, page: int, severity: str,
    behind: str = "",
) -> Finding:  # fmt: skip
    """Return a finding about a page that must not be in a block table."""
    others = sorted(state.holders.get(page, set()) - {step.invocation.request_ids[row]})
    what = f"block {place} of the block table{behind} references page {page}"
    return about(
        step, row, _kind(state, page), f"{what}, which is {_where(state, page)}", severity,
        page=page, other_request_id=others[0] if others else None,
    )  # fmt: skip


_OVERWRITTEN = "The next owner of the page overwrites what the row reads."
_OTHERS = "The row writes to a page of another owner and reads from it."


class BlockTableMismatch(Rule):
    name = "block-table-mismatch"
    sentence = "Within the row's length, a block table has only pages of its request, each once."
    causes = {
        "padding-page": "The row has no page for this block. It uses page 0 instead, which padding"
        " rows and other rows without a page overwrite.",
        "no-such-page": "Writes to a page that does not exist are lost or go to other memory.",
        **each("free-page freed-page", _OVERWRITTEN),
        **each("cached-page leaked-page foreign-page duplicate-page too-short", _OTHERS),
    }

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for row, sequence in step.known_rows():
            pages, request = step.pages_of(row), sequence.request_id
            held = state.held.get(request, set())
            if len(set(pages)) == len(pages) and held.issuperset(pages):
                yield from self._own_pages(state, step, row)
                continue
            if strange := [page for page in pages if page not in held]:
                page = strange[0]
                # A page beyond the pool cannot hold the request's data.
                severity = AT_RISK if 0 <= page < state.page_count else WRONG_DATA
                yield _reference(state, step, row, pages.index(page), page, severity)
            else:
                page = next(p for p in pages if pages.count(p) > 1)
                what = f"the block table references page {page} {pages.count(page)} times"
                yield about(step, row, "duplicate-page", what, page=page)

    def _own_pages(self, state: EngineState, step: ShadowStep, row: int) -> Iterator[Finding]:
        pages, length = step.pages_of(row), step.lengths[row]
        if not state.free.isdisjoint(pages):
            page = next(page for page in pages if page in state.free)
            what = f"the block table references page {page}, which is {state.where(page)}"
            yield about(step, row, "freed-page", what, page=page)
        if -(-length // state.stride) > len(pages):
            has = f"the block table has {counted(len(pages), 'page')}"
            what = f"{has}, too few for {counted(length, 'token')}"
            yield about(step, row, "too-short", what, WRONG_DATA)


class BlockTablePadding(Rule):
    """Checks the part of a block table beyond the row's length.

    Padded writes and too long seq_lens reach it. All releases pad with page 0. With allocations, a
    request may hold one more page than its length needs, and the engine lists it.
    """

    name = "block-table-padding"
    sentence = (
        "Beyond the row's length, a block table has only page 0 and further pages of its request;"
        " a padding row has only page 0."
    )
    causes = each(
        "no-such-page padding-page free-page cached-page leaked-page foreign-page padding-row",
        "The mask hides the page from correct reads, but the padding of a prompt is written to it,"
        " and too long seq_lens read it.",
    )

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        stride = state.stride
        tables = step.invocation.tables.tolist()  # sets are faster than arrays here
        for row, sequence in step.known_rows():
            rest = {*tables[row][-(-step.lengths[row] // stride) :]} - _PADDING
            held = state.held.get(sequence.request_id, _NONE)
            if rest and not (rest <= held and rest.isdisjoint(state.free)):
                yield self._beyond(state, step, row, tables[row], held)
        for row in range(step.invocation.real, len(tables)):
            place = next((p for p, page in enumerate(tables[row]) if page != PADDING_PAGE), None)
            if place is not None:
                page = tables[row][place]
                holders = sorted(state.holders.get(page, ()))
                what = f"block {place} of the block table references page {page}"
                what += f" instead of page {PADDING_PAGE}; the page is {_where(state, page)}"
                owner = holders[0] if holders else None
                yield about(step, row, "padding-row", what, page=page, request_id=owner)

    def _beyond(
        self, state: EngineState, step: ShadowStep, row: int, table: list[int], held: Set[int]
    ) -> Finding:
        blocks = -(-step.lengths[row] // state.stride)
        places = [place for place in range(blocks, len(table)) if table[place] != PADDING_PAGE]
        strange = [place for place in places if table[place] not in held]
        place = (strange or [place for place in places if table[place] in state.free])[0]
        length = counted(step.lengths[row], "token")
        behind = f", beyond the {counted(blocks, 'page')} of its {length},"
        return _reference(state, step, row, place, table[place], AT_RISK, behind)


class SharedPageWrite(Rule):
    name = "shared-page-write"
    sentence = "Slots used by the trie or another request are only rewritten with the same content."
    causes = {
        "padding-row": "Padding is written to page 0, but the page has an owner.",
        "request-row": "The other users of the page read the overwritten data.",
    }

    def __init__(self) -> None:
        super().__init__()
        self.rewritten = 0
        """Number of such slots that were rewritten with the same content; this is no violation."""

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for row, pages in enumerate((step.write_slots // state.stride).tolist()):
            request = step.invocation.request_of(row)
            for page in sorted(set(pages)):
                others = state.holders.get(page, _NONE) - {request}
                node = state.nodes.get(state.node_at.get(page, -1))
                if page >= 0 and (others or node is not None):
                    length = 0 if node is None else len(node.tokens)
                    yield from self._one(state, step, row, page, sorted(others), length)

    def _one(
        self, state: EngineState, step: ShadowStep, row: int, page: int, others: list[str],
        published_length: int,
    ) -> Iterator[Finding]:  # fmt: skip
        own = step.write_slots[row] // state.stride == page
        offsets = step.write_slots[row][own] % state.stride
        before, now = step.before[row][own], step.write_content[row][own]
        published = offsets < published_length
        numbers = [s.number for r in others if (s := state.last_of.get(r)) is not None]
        theirs = np.isin(step.writer_before[row][own], numbers) & (before > PADDING)
        used = published | theirs
        changed = used & (before != now) & (before != UNKNOWN) & (now != UNKNOWN)
        self.rewritten += int((used & (before == now)).sum())
        if not changed.any():
            return
        request, offset = step.invocation.request_of(row), int(offsets[np.flatnonzero(changed)[0]])
        cached = bool(published[changed].any())
        users = f"node {state.node_at[page]} of the trie" if cached else " and ".join(others)
        other = others[0] if others else None
        cause = "padding-row" if request is None else "request-row"
        what = f"overwrites slot {offset} of page {page}, in use by {users}"
        yield about(
            step, row, cause, what, slot=page * state.stride + offset,
            request_id=request or other, other_request_id=other if request else None,
        )  # fmt: skip
