"""Builds the context of a finding: the pages involved, before and after its step."""

from __future__ import annotations

from analysis.sanitizer.findings import (
    NOTHING_KIND,
    PADDING_KIND,
    TOKEN_KIND,
    UNKNOWN_KIND,
    Finding,
    FindingContext,
    PageContext,
    Slot,
)
from analysis.sanitizer.shadow import NOTHING, PADDING, UNKNOWN
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep

_MOST_PAGES = 6


def context_of(state: EngineState, finding: Finding, step: ShadowStep | None) -> FindingContext:
    """Return a copy of the pages around a finding; empty without a page and an invocation."""
    if finding.page is None and step is None:
        return FindingContext((), {}, {})
    requests = [r for r in (finding.request_id, finding.other_request_id) if r]
    tables: dict[str, tuple[int, ...]] = {}
    lengths: dict[str, int] = {}
    reads: tuple[tuple[int, int], ...] = ()
    for request in requests:
        tables[request] = tuple(sorted(state.held.get(request, ())))
        if (sequence := state.last_of.get(request)) is not None:
            lengths[request] = sequence.length
    if step is not None:
        for row, request in enumerate(step.invocation.request_ids):
            if request in tables and step.sequences[row] is not None:
                read = -(-int(step.reads[row].sum()) // state.stride)
                blocks = max(len(step.pages_of(row)), read)
                tables[request] = tuple(step.invocation.tables[row, :blocks].tolist())
                if request == finding.request_id:
                    slots = step.read_slots[row][step.reads[row]].tolist()
                    reads = tuple((s // state.stride, s % state.stride) for s in slots)
    pages = [] if finding.page is None else [finding.page]
    pages += [page for request in requests for page in tables[request]]
    shown = [p for p in dict.fromkeys(pages) if 0 <= p < state.page_count][:_MOST_PAGES]
    contexts = tuple(_page(state, page, step) for page in shown)
    return FindingContext(contexts, tables, lengths, reads)


def _page(state: EngineState, page: int, step: ShadowStep | None) -> PageContext:
    stride, shadow = state.stride, state.shadow
    first = page * stride
    arrays = (shadow.content, shadow.writer, shadow.position, shadow.tainted)
    slots = zip(*(array[first : first + stride].tolist() for array in arrays), strict=True)
    after = [_slot(state, *slot) for slot in slots]
    before = list(after)
    if step is not None:
        rows, columns = (step.write_slots // stride == page).nonzero()
        # If several rows write a slot, all of them have the same content before.
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            content, writer, position = (
                int(a[row, column]) for a in (step.before, step.writer_before, step.position_before)
            )
            place = int(step.write_slots[row, column]) - first
            before[place] = _slot(state, content, writer, position)
    return PageContext(page, state.where(page), tuple(before), tuple(after))


def _slot(
    state: EngineState, content: int, writer: int, position: int, tainted: bool = False
) -> Slot:
    if content == int(NOTHING):
        return Slot(NOTHING_KIND)
    if content == int(UNKNOWN):
        return Slot(UNKNOWN_KIND)
    if content == int(PADDING):
        return Slot(PADDING_KIND, state.name(writer))
    return Slot(TOKEN_KIND, state.name(writer), position, tainted)
