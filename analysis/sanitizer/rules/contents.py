"""Rules about the bytes in pages, checked where they were read back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.core.wording import capitalised, counted, listed, numbered
from analysis.recording.checksums import SAMPLED
from analysis.recording.writes import PADDING_PAGE
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.rules.base import Rule, each
from analysis.sanitizer.shadow import NO_WRITER, NOTHING, PADDING, UNKNOWN, Ints
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event

_KEPT_STEPS = 64


def _wrong_slot(cause: str, what: str, event: Event, page: int, slot: int | None) -> Finding:
    """Return a finding about a slot with wrong data."""
    return Finding(cause, what, event.request_id, page=page, slot=slot, severity=WRONG_DATA)


class NonfiniteKV(Rule):
    name = "nonfinite-kv"
    sentence = "No slot of an invocation's pages holds NaN or infinity, including masked slots."
    causes = each(
        "padding-page foreign-page own-page",
        "A NaN spreads to the whole row, even from a masked slot.",
    )
    tolerates_gaps = True

    def on_nonfinite(self, state: EngineState, event: Event) -> Iterator[Finding]:
        page = event.pages[0]
        cause = "padding-page" if page == PADDING_PAGE else "foreign-page"
        if page in state.held.get(event.request, ()):
            cause = "own-page"
        what = (
            f"Slot {event.value} of page {page}, in the block table of {event.request_id}, holds"
            " NaN or infinity. An additive mask does not hide it."
        )
        yield _wrong_slot(cause, what, event, page, event.value)


class PartialCopy(Rule):
    name = "partial-copy"
    sentence = "A copied page holds the same bytes as its source."
    causes = {"missing-slots": "A request that reads the copy gets incomplete data."}
    tolerates_gaps = True

    def after_copy(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if event.value is not None:  # the first slot that differs; None if not compared
            source, target = event.pages[:2]
            what = f"Page {target} was copied from page {source}, but slot {event.value} differs."
            yield _wrong_slot("missing-slots", what, event, target, event.value)


class WriteAfterFree(Rule):
    name = "write-after-free"
    sentence = "A freed page does not change while it is in quarantine."
    causes = {"quarantined-page": "Without quarantine the write may hit another request's page."}
    tolerates_gaps = True

    def on_written_after_free(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            exists = 0 <= page < state.page_count
            writer = state.name(int(state.shadow.writer[page * state.stride])) if exists else None
            last = f"; the last recorded write to it is by {writer}" if writer else ""
            what = f"Page {page} was written after it was freed{last}."
            yield Finding("quarantined-page", what, event.request_id, writer, page=page)


class KVCorruption(Rule):
    name = "kv-corruption"
    sentence = "The bytes of a slot change only by a recorded write."
    causes = {
        "copied-page": "A request that reads the copy gets incomplete data.",
        "free-page": "Something other than the model wrote to a free page.",
        **each(
            "other-slot changed",
            "Something other than the model wrote to the page. Rows that attend to the slot are"
            " wrong.",
        ),
    }
    limits = {
        "": "Not checked: page 0, pages in use when the recording began, and changes that an"
        " invocation overwrites."
    }
    tolerates_gaps = True

    def __init__(self) -> None:
        super().__init__()
        self._invocation: Ints = np.zeros(0, dtype=np.int64)
        """For each slot, the last invocation that attended to it; `_reader` has its sequence."""
        self._reader: Ints = self._invocation

    def invocation(self, state: EngineState, step: ShadowStep) -> None:
        self._begin(state)
        number = step.invocation.invocation_id
        for row, sequence in step.known_rows():
            slots = step.read_slots[row][step.reads[row]]
            self._invocation[slots], self._reader[slots] = number, sequence.number

    def _begin(self, state: EngineState) -> None:
        if not len(self._invocation):
            self._invocation = np.full(state.page_count * state.stride, -1, dtype=np.int64)
            self._reader = np.full_like(self._invocation, NO_WRITER)
            state.written_by.append(self._reader)

    def on_bytes_changed(self, state: EngineState, event: Event) -> Iterator[Finding]:
        page, change = event.pages[0], event.extras["changed_bytes"]
        readers = self._readers(state, page, change)
        source, moment = change.get("from_page"), change["moment"]
        free = page in state.free and moment not in ("free", "pages_dropped")
        if change["copy_of"] is not None:
            cause = "copied-page"
        elif (free or moment == "acquire") and not readers:
            cause = "free-page"
        else:
            cause = "changed" if source is None else "other-slot"
        writer = None
        if source is not None:
            place = source * state.stride + change["from_slot"]
            writer = state.name(int(state.shadow.writer[place]))
        what = _changed_message(page, change, readers, writer)
        severity, slot = WRONG_DATA if readers else AT_RISK, change["slots"][0]
        affected: list[str | None] = [*readers] or [event.request_id]
        for request in affected:
            other = writer if writer != request else None
            yield Finding(cause, what, request, other, page=page, slot=slot, severity=severity)

    def after_bytes_changed(self, state: EngineState, event: Event) -> None:
        """Taint the slots: results computed from them are wrong."""
        slots = np.array(event.extras["changed_bytes"]["slots"], dtype=np.int64)
        state.shadow.tainted[event.pages[0] * state.stride + slots] = True

    def _readers(self, state: EngineState, page: int, change: Mapping[str, Any]) -> list[str]:
        """Return the requests that read these slots after the change, or will read them next."""
        since, seen, shadow = change["since_invocation"], change["seen_invocation"], state.shadow
        found: set[str] = set()
        self._begin(state)
        for place in (page * state.stride + slot for slot in change["slots"]):
            invocation, number = int(self._invocation[place]), int(self._reader[place])
            if since < invocation <= seen and (name := state.name(number)) is not None:
                found.add(name)
            for name in change["holders"]:
                sequence = state.under_way.get(name)
                position = int(shadow.position[place])
                # After a later write, the earlier content is unknown.
                if shadow.invocation[place] > seen or (
                    sequence is not None
                    and 0 <= position < sequence.length
                    and int(shadow.content[place]) == int(sequence.hashes[position])
                ):
                    found.add(name)
        return sorted(found)


class LostWrite(Rule):
    name = "lost-write"
    sentence = "After an invocation, each of its tokens has its complete key and value in its slot."
    causes = each(
        "whole-slot part-of-slot", "All later tokens of the request attend to the missing data."
    )

    def __init__(self) -> None:
        super().__init__()
        self._steps: OrderedDict[int, ShadowStep] = OrderedDict()

    def invocation(self, state: EngineState, step: ShadowStep) -> None:
        self._steps[step.invocation.invocation_id] = step
        if len(self._steps) > _KEPT_STEPS:
            self._steps.popitem(last=False)

    def on_bytes_kept(self, state: EngineState, event: Event) -> Iterator[Finding]:
        page, step = event.pages[0], self._steps.get(event.value or 0)
        kept = {written["slot"]: written for written in event.extras["kept_bytes"]}
        lost = [
            slot
            for slot, now in kept.items()
            if now["zeros"] or now["other_token"] or _is_new(step, page * state.stride + slot)
        ]
        if not lost:
            return
        first = kept[lost[0]]
        state.shadow.tainted[[page * state.stride + slot for slot in lost]] = True
        holds = "zeros" if first["zeros"] else "the old bytes"
        cause = "whole-slot" if first["whole"] else "part-of-slot"
        what = (
            f"Invocation {event.value} wrote {numbered('slot', lost, most=_SHOWN)} of page {page}"
            f" for {event.request_id}, but afterwards they hold {holds}{_parts(first['blocks'])}."
        )
        yield _wrong_slot(cause, what, event, page, lost[0])


_SHOWN = 4


def _is_new(step: ShadowStep | None, place: int) -> bool:
    """Return whether an invocation wrote new content to a slot."""
    if step is None:
        return False
    real = step.invocation.real
    where = step.write_slots[:real] == place
    before, content = step.before[:real][where], step.write_content[:real][where]
    # A slot that was not written since the recording began may have held the same content.
    strange = (UNKNOWN, PADDING, NOTHING)
    unknown = np.isin(before, strange) | np.isin(content, strange)
    return bool(len(before) and (before != content).all() and not unknown.any())


_MOMENTS = {
    "start": "the next invocation started",
    "landing": "an invocation finished",
    "acquire": "the page was allocated",
    "free": "the page was freed",
    "pages_dropped": "a request dropped the page",
    "match": "the page was found in the trie",
    "end": "the recording ended",
}


def _changed_message(
    page: int, change: Mapping[str, Any], readers: Sequence[str], writer: str | None
) -> str:
    slots, since, source = change["slots"], change["since_invocation"], change.get("from_page")
    parts = [
        f"{capitalised(numbered('slot', slots, most=_SHOWN))} of page {page} changed without a"
        f" recorded write{_parts(change['blocks'])}; detected when {_MOMENTS[change['moment']]}"
    ]
    if change["copy_of"] is not None:
        parts.append(f"the page is a copy of page {change['copy_of']}")
    if change.get("zeros"):
        parts.append("it now holds zeros")
    elif source is not None:
        owner = f" of {writer}" if writer else ""
        place = f"slot {change['from_slot']} of page {source}"
        parts.append(f"it now holds the bytes of {place}{owner}")
    if since >= 0:
        parts.append(f"last checked after the start of invocation {since}")
    read = f"read since, or to be read, by {' and '.join(readers)}"
    parts.append(read if readers else "no known request has read the slot since")
    return f"{'; '.join(parts)}."


def _parts(blocks: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the affected layers and heads in words; "" for all."""
    if blocks is None:
        return ""
    layers, kinds, heads = (
        sorted({block[name] for block in blocks}) for name in ("layer", "kind", "head")
    )
    if len(blocks) != len(layers) * len(kinds) * len(heads):
        first = f"layer {blocks[0]['layer']}, {blocks[0]['kind']}, head {blocks[0]['head']}"
        return f" in {len(blocks)} of its blocks (the first is {first})"
    return f" in {numbered('layer', layers)} ({listed(kinds)}, {numbered('head', heads)})"


_UNREAD = {
    "not_judged": "The bytes of {pages} were not checked: the pages were in use when the recording"
    " began, or a failed invocation may have written to them.",
    "undecided": "Changed bytes of {pages} were not checked: unfinished invocations may have"
    " written them.",
}


def describe_coverage(event: Event | None) -> tuple[str, list[str]]:
    """Return how far the bytes of pages were checked, and notes on unchecked bytes."""
    if event is None:
        return "", []
    coverage = event.extras.get("coverage")
    if coverage is None:
        return "", [f"The bytes of pages were not checked: {event.message}."]
    notes = [
        sentence.format(pages=counted(len(coverage[name]), "page"))
        for name, sentence in _UNREAD.items()
        if coverage[name]
    ]
    if unchecked := coverage.get("unchecked"):  # missing in older runs
        changes = counted(unchecked, "change")
        notes.append(f"{changes} not checked: too many invocations were unfinished.")
    invocations, pages = coverage["invocations"], counted(coverage["pages_read"], "page")
    slots = counted(coverage["slots_written"], "written slot")
    text = f"Bytes: {slots} read back after {counted(invocations, 'invocation')}, {pages} read"
    followed = coverage.get("followed")  # missing in older runs, which followed all pages
    if coverage["mode"] == "whole":
        scope = " (all pages before and after each invocation)"
    elif coverage["mode"] == "sampled" and followed is not None:
        scope = f", of {followed} of {coverage['page_count']} pages, drawn at random"
    else:
        every = coverage["pages_offered"] / (SAMPLED * invocations) if invocations else 0.0
        rate = f"; of the pages of an invocation 1 in {max(every, 1.0):.1f}" if invocations else ""
        scope = f"{rate} (each page also when it is dropped, acquired or found, and at the end)"
    return f"{text} again{scope}.", notes
