"""What the pages really hold, where somebody looked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.core.wording import counted
from analysis.recording.checksums import SAMPLED
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.shadow import NOBODY, NOTHING, PADDING, UNKNOWN, Ints
from analysis.sanitizer.world import PADDING_PAGE, Event, World

_KEPT_PASSAGES = 64


class FiniteContents(Rule):
    """A masked slot is multiplied by nothing, unless it holds NaN or infinity."""

    name = "nonfinite-kv"
    sentence = "No slot of a page that is flown holds NaN or infinity, not even a masked one."
    bears_gaps = True

    def on_nonfinite(self, world: World, event: Event) -> Iterator[Finding]:
        page = event.pages[0]
        cause = "padding-page" if page == PADDING_PAGE else "foreign-page"
        if page in world.held.get(event.request_id or "", ()):
            cause = "own-page"
        yield Finding(
            cause=cause,
            message=f"Slot {event.value} of page {page}, which {event.request_id} flew with, holds"
            " NaN or infinity; a mask that is added does not hide it.",
            request_id=event.request_id,
            page=page,
            slot=event.value,
            severity=WRONG_DATA,
        )


class WholeCopies(Rule):
    """A copied page is the page."""

    name = "partial-copy"
    sentence = "A page that was copied holds the same bytes as its source."
    bears_gaps = True

    def after_copy(self, world: World, event: Event) -> Iterator[Finding]:
        # `value` is the first slot that differs, looked at only on request.
        if event.value is not None:
            source, target = event.pages[:2]
            yield Finding(
                cause="missing-slots",
                message=f"Page {target} was copied from page {source} but for slot {event.value}.",
                request_id=event.request_id,
                page=target,
                slot=event.value,
                severity=WRONG_DATA,
            )


class WrittenAfterFree(Rule):
    """Nobody writes to a page that was freed."""

    name = "write-after-free"
    sentence = "A page that comes back from quarantine is as it was when it was freed."
    bears_gaps = True

    def on_written_after_free(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            there = 0 <= page < world.page_count
            writer = world.name(int(world.shadow.writer[page * world.stride])) if there else None
            yield Finding(
                cause="quarantined-page",
                message=f"Page {page} was written after it was freed"
                + (f"; the last write to it that was seen is by {writer}." if writer else "."),
                request_id=event.request_id,
                other_request_id=writer,
                page=page,
            )


class UnwrittenBytes(Rule):
    """Bytes change by being written, and not otherwise."""

    name = "kv-corruption"
    sentence = "A slot that nothing wrote holds the bytes that it held before."
    bears_gaps = True

    def __init__(self) -> None:
        self._invocation: Ints = np.zeros(0, dtype=np.int64)
        """By slot: the last invocation that attended to it, and the sequence for which it did."""
        self._reader: Ints = self._invocation

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        self._begin(world)
        for row, sequence in passage.known_rows():
            slots = passage.read_slots[row][passage.reads[row]]
            self._invocation[slots], self._reader[slots] = (
                passage.invocation.invocation_id,
                sequence.number,
            )
        return iter(())

    def _begin(self, world: World) -> None:
        if not len(self._invocation):
            self._invocation = np.full(world.page_count * world.stride, -1, dtype=np.int64)
            self._reader = np.full_like(self._invocation, NOBODY)
            world.written_by.append(self._reader)

    def on_bytes_changed(self, world: World, event: Event) -> Iterator[Finding]:
        page, said = event.pages[0], event.extras["changed_bytes"]
        slots, since = said["slots"], said["since_invocation"]
        places = [page * world.stride + slot for slot in slots]
        readers = self._readers(world, places, said)
        moment = said["moment"]
        free = moment == "acquire" or (
            page in world.free and moment not in ("free", "pages_dropped")
        )
        copy_of, source = said["copy_of"], said.get("from_page")
        if copy_of is not None:
            cause = "copied-page"
        elif free and not readers:
            cause = "free-page"
        else:
            cause = "changed" if source is None else "other-slot"
        writer = None
        if source is not None:
            place = source * world.stride + said["from_slot"]
            writer = world.name(int(world.shadow.writer[place]))
        message = (
            f"{_slots(slots).capitalize()} of page {page} changed{_of(said['blocks'])}, and nothing"
            f" wrote {_them(slots)}; seen when {_MOMENTS[moment]}"
            + (f"; the page was copied from page {copy_of}" if copy_of is not None else "")
            + _now(said, writer)
            + (f". Last seen right after invocation {since} began" if since >= 0 else "")
            + (
                f"; {' and '.join(readers)} read {_them(slots)} since or will"
                if readers
                else "; no request is known to have read it since"
            )
            + "."
        )
        suffering: list[str | None] = [*readers] or [event.request_id]
        for suffers in suffering:
            yield Finding(
                cause=cause,
                message=message,
                request_id=suffers,
                other_request_id=writer if writer != suffers else None,
                page=page,
                slot=slots[0],
                severity=WRONG_DATA if readers else AT_RISK,
            )

    def after_bytes_changed(self, world: World, event: Event) -> Iterator[Finding]:
        """Have what is computed from them from now on be known for tainted."""
        first = event.pages[0] * world.stride
        slots = [first + slot for slot in event.extras["changed_bytes"]["slots"]]
        world.shadow.tainted[slots] = True
        yield from ()

    def _readers(self, world: World, places: Sequence[int], said: dict[str, Any]) -> list[str]:
        """Return the requests that read such slots meanwhile, or would have read them next."""
        since, seen = said["since_invocation"], said["seen_invocation"]
        found: dict[str, None] = {}
        self._begin(world)
        for place in places:
            invocation, number = int(self._invocation[place]), int(self._reader[place])
            if since < invocation <= seen and (name := world.name(number)) is not None:
                found[name] = None
            for name in said["holders"]:
                sequence = world.under_way.get(name)
                position = int(world.shadow.position[place])
                # What was written since it was read says nothing of what was there.
                if world.shadow.invocation[place] > seen or (
                    sequence is not None
                    and 0 <= position < sequence.length
                    and int(world.shadow.content[place]) == int(sequence.hashes[position])
                ):
                    found[name] = None
        return sorted(found)


class ArrivedWrites(Rule):
    """An invocation writes each token's key and value, in every layer and for every head."""

    name = "lost-write"
    sentence = "When an invocation has landed, all of each token's key and value is in its slot."

    def __init__(self) -> None:
        self._passages: OrderedDict[int, Passage] = OrderedDict()

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        self._passages[passage.invocation.invocation_id] = passage
        if len(self._passages) > _KEPT_PASSAGES:
            self._passages.popitem(last=False)
        yield from ()

    def on_bytes_kept(self, world: World, event: Event) -> Iterator[Finding]:
        page, passage = event.pages[0], self._passages.get(event.value or 0)
        slots = {said["slot"]: said for said in event.extras["kept_bytes"]}
        lost = [
            slot
            for slot, said in slots.items()
            if said["zeros"] or said["other_token"] or _is_news(passage, page, slot, world)
        ]
        if not lost:
            return
        first = slots[lost[0]]
        what = "zeros" if first["zeros"] else "what was there before"
        world.shadow.tainted[[page * world.stride + slot for slot in lost]] = True
        yield Finding(
            cause="whole-slot" if first["whole"] else "part-of-slot",
            message=f"Invocation {event.value} wrote {_slots(lost)} of page {page} for"
            f" {event.request_id}, and{_of(first['blocks'])} {_they(lost)} {what}.",
            request_id=event.request_id,
            page=page,
            slot=lost[0],
            severity=WRONG_DATA,
        )


def _is_news(passage: Passage | None, page: int, slot: int, world: World) -> bool:
    """Tell whether an invocation wrote a slot with something else than what it held."""
    if passage is None:
        return False
    where = passage.write_slots[: passage.invocation.real] == page * world.stride + slot
    before = passage.before[: passage.invocation.real][where]
    content = passage.write_content[: passage.invocation.real][where]
    # What was never written since the watching began may hold the same from before.
    strange = (UNKNOWN, PADDING, NOTHING)
    unknown = np.isin(before, strange) | np.isin(content, strange)
    return bool(len(before) and (before != content).all() and not unknown.any())


def coverage_in_words(event: Event | None) -> tuple[str, list[str]]:
    """Say how far the bytes of pages were checked, and what of it was not."""
    if event is None:
        return "", []
    said = event.extras.get("coverage")
    if said is None:
        return "", [f"The bytes of pages were not checked: {event.message}."]
    notes = []
    if said["not_judged"]:
        notes.append(
            "The bytes of pages that were in use when the watching began, or that a failed"
            " invocation"
            f" may have written, were not checked ({counted(len(said['not_judged']), 'page')})."
        )
    if said["undecided"]:
        notes.append(
            f"Changed bytes of {counted(len(said['undecided']), 'page')} could not be judged, as"
            " invocations that may have written them did not land."
        )
    # Not told by runs that were recorded before it was counted.
    if unchecked := said.get("unchecked"):
        notes.append(
            f"{counted(unchecked, 'change')} of a page {'was' if unchecked == 1 else 'were'} not"
            " judged, as more waited for invocations to land than are remembered."
        )
    invocations, offered = said["invocations"], said["pages_offered"]
    text = (
        f"Bytes: {counted(said['slots_written'], 'written slot')} read back after"
        f" {counted(invocations, 'invocation')}, {counted(said['pages_read'], 'page')} read again"
    )
    if said["mode"] == "whole":
        return f"{text} (all pages before and after each invocation).", notes
    if said["mode"] == "sampled" and said.get("followed") is not None:  # older runs followed all
        followed = f"{said['followed']} of {said['page_count']}"
        return f"{text}, of {followed} pages, drawn by chance.", notes
    every = offered / (SAMPLED * invocations) if invocations else 0.0
    rate = (
        f"; of the pages that an invocation used 1 in {max(every, 1.0):.1f}" if invocations else ""
    )
    return f"{text}{rate} (and all at the latest when given up, taken, found or at the end).", notes


_MOMENTS = {
    "start": "the next invocation started",
    "landing": "an invocation landed",
    "acquire": "it was taken from the pool",
    "free": "it was freed",
    "pages_dropped": "a request let go of it",
    "match": "it was found in the trie",
    "end": "the watching ended",
}


def _slots(slots: Sequence[int]) -> str:
    if len(slots) == 1:
        return f"slot {slots[0]}"
    return f"{len(slots)} slots (the first is {slots[0]})"


def _them(slots: Sequence[int]) -> str:
    return "it" if len(slots) == 1 else "them"


def _they(slots: Sequence[int]) -> str:
    return "it holds" if len(slots) == 1 else "they hold"


def _of(blocks: Sequence[Mapping[str, Any]] | None) -> str:
    """Say which layers and heads, if not all."""
    if blocks is None:
        return ""
    layers = sorted({block["layer"] for block in blocks})
    kinds = sorted({block["kind"] for block in blocks})
    heads = sorted({block["head"] for block in blocks})
    if len(blocks) != len(layers) * len(kinds) * len(heads):
        first = f"layer {blocks[0]['layer']}, {blocks[0]['kind']}, head {blocks[0]['head']}"
        return f" in {len(blocks)} of its blocks (the first is {first})"
    return (
        f" in {'layer' if len(layers) == 1 else 'layers'} {_listed(layers)}"
        f" ({' and '.join(kinds)}, {'head' if len(heads) == 1 else 'heads'} {_listed(heads)})"
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _now(said: Mapping[str, Any], writer: str | None) -> str:
    if said.get("zeros"):
        return "; zeros are there now"
    if (page := said.get("from_page")) is None:
        return ""
    whose = f" of {writer}" if writer else ""
    return f"; the bytes of slot {said['from_slot']} of page {page}{whose} are there now"
