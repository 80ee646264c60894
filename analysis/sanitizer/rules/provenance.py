"""Whose keys and values a row reads: the rules that define what a correct answer is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from analysis.core.wording import counted
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.shadow import NOTHING, PADDING, Ints
from analysis.sanitizer.world import Event, Sequence, World


class OwnTokens(Rule):
    """A row flies with the tokens of its own request."""

    name = "token-mismatch"
    sentence = "Every row flies with its request's own prompt, or the token chosen for it last."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        for row, sequence in passage.known_rows():
            position = passage.wrong_tokens[row]
            if position is None:
                continue
            lacking = position >= int(passage.first[row]) + int(passage.tokens_of[row])
            what = "without its token" if lacking else "with another token than its own"
            yield Finding(
                cause="missing-token" if lacking else "wrong-token",
                message=f"A {passage.invocation.phase} of {sequence.request_id} flies {what} at"
                f" position {position}.",
                request_id=sequence.request_id,
                severity=WRONG_DATA,
            )


class OwnPosition(Rule):
    """A row goes on where its sequence ended."""

    name = "position-mismatch"
    sentence = "Every row starts at the position at which its sequence ended, on a page it has."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        some_outside = passage.outside.any()
        for row, sequence in passage.known_rows():
            first = int(passage.first[row])
            if passage.has_wrong_place(row):
                due = passage.due_first[row]
                yield Finding(
                    cause="ahead" if first > due else "behind",
                    message=f"A {passage.invocation.phase} of {sequence.request_id} starts at"
                    " position"
                    f" {first}, where its sequence stands at {due}.",
                    request_id=sequence.request_id,
                    page=_page(world, int(passage.write_slots[row, 0])),
                    severity=WRONG_DATA,
                )
            count = int(passage.tokens_of[row])
            if some_outside and len(outside := np.flatnonzero(passage.outside[row, :count])):
                position, table = first + int(outside[0]), passage.invocation.tables[row]
                place = position // world.stride
                where = f"outside of its block table of {counted(len(table), 'page')}"
                if place < len(table):
                    where = f"to page {int(table[place])}, {world.where(int(table[place]))}"
                yield Finding(
                    cause="no-page",
                    message=f"Position {position} of {sequence.request_id} is written {where}.",
                    request_id=sequence.request_id,
                    severity=WRONG_DATA,
                )


class OwnLength(Rule):
    """A row attends to as many positions as its sequence has."""

    name = "seq-len-mismatch"
    sentence = "Every row attends to exactly the positions of its own sequence."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        for row, sequence in passage.known_rows():
            flown, own = int(invocation.seq_lens[row]), passage.lengths[row]
            if flown == own:
                continue
            slots = passage.read_slots[row][passage.beyond[row]]
            yield Finding(
                cause="overread" if flown > own else "underread",
                message=partial(_length_words, world, passage, sequence, (flown, own), slots),
                request_id=sequence.request_id,
                other_request_id=_others(world, slots, sequence),
                page=_page(world, int(slots[0])) if len(slots) else None,
                slot=int(slots[0]) % world.stride if len(slots) else None,
                # Beyond its block table there is nothing that it could read.
                severity=WRONG_DATA if len(slots) or flown < own else AT_RISK,
            )


class WithinContext(Rule):
    """A row goes no further than the model does.

    No release looks at the model's length: a request is served beyond it, with positions that the
    model never saw.
    """

    name = "context-overflow"
    sentence = "No row writes or attends to a position beyond the model's context."

    def __init__(self) -> None:
        self._told: set[str] = set()

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        limit = world.context
        if limit is None:
            return
        ends = passage.first + passage.tokens_of
        flown = np.maximum(ends, passage.invocation.seq_lens)[: passage.invocation.real]
        if not (flown > limit).any():
            return
        for row, sequence in passage.known_rows():
            if flown[row] <= limit or sequence.request_id in self._told:
                continue
            self._told.add(sequence.request_id)
            yield Finding(
                cause="past-context",
                message=f"A {passage.invocation.phase} of {sequence.request_id} goes to position"
                f" {int(flown[row]) - 1}, where the model's context has {limit} positions.",
                request_id=sequence.request_id,
            )

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.request_id not in world.given_up:
            self._told.discard(event.request_id or "")
        return iter(())

    def after_late(self, world: World, event: Event) -> Iterator[Finding]:
        self._told.discard(event.request_id or "")
        return iter(())


class OneWriter(Rule):
    """No two rows write different things to one slot in one invocation."""

    name = "write-write-conflict"
    sentence = "In one invocation no slot is written by two rows, unless with the same prefix."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        slots, contents = passage.write_slots.ravel(), passage.write_content.ravel()
        order = np.argsort(slots, kind="stable")
        slots, contents = slots[order], contents[order]
        rows = order // passage.write_slots.shape[1]
        twice = (slots[1:] == slots[:-1]) & (contents[1:] != contents[:-1]) & (slots[1:] >= 0)
        twice &= rows[1:] != rows[:-1]
        if not twice.any():
            return
        place = int(np.flatnonzero(twice)[0])
        ids = passage.invocation.request_ids
        both = sorted(rows[place : place + 2].tolist())
        who = [ids[row] if row < len(ids) else "a padding row" for row in both]
        slot = int(slots[place])
        yield Finding(
            cause="two-rows" if both[1] < len(ids) else "padding-row",
            message=f"{who[0]} and {who[1]} write slot {slot % world.stride} of page"
            f" {slot // world.stride} in one {passage.invocation.phase}, each something else.",
            request_id=ids[both[0]] if both[0] < len(ids) else None,
            other_request_id=ids[both[1]] if both[1] < len(ids) else None,
            page=slot // world.stride,
            slot=slot % world.stride,
        )


class OwnPrefix(Rule):
    """What a row reads was written for exactly its own tokens."""

    name = "wrong-kv-read"
    sentence = "Every slot that a row attends to holds the key and value of its own prefix."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        if not passage.wrong.any():
            return
        for row, sequence in passage.known_rows():
            places = np.flatnonzero(passage.wrong[row])
            if not len(places):
                continue
            position = int(places[0])
            slot = int(passage.read_slots[row, position])
            cause, other = _holds(world, slot, sequence)
            yield Finding(
                cause=cause,
                message=partial(_prefix_words, world, passage, sequence, places, slot),
                request_id=sequence.request_id,
                other_request_id=other,
                page=slot // world.stride,
                slot=slot % world.stride,
                severity=WRONG_DATA,
            )


class Inherited(Rule):
    """What a row reads was itself computed from what it should be."""

    name = "tainted-kv-read"
    sentence = "No slot that a row attends to was computed from wrong data."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        if not passage.inherited.any():
            return
        for row, sequence in passage.known_rows():
            places = np.flatnonzero(passage.inherited[row])
            if not len(places):
                continue
            slots = passage.read_slots[row, places]
            writers = world.shadow.writer[slots]
            foreign = np.flatnonzero(writers != sequence.number)
            place = int(foreign[0]) if len(foreign) else 0
            slot, other = int(slots[place]), world.name(int(writers[place]))
            own = other == sequence.request_id
            yield Finding(
                cause="own-steps" if own else "other-request",
                message=f"A {passage.invocation.phase} of {sequence.request_id} reads its position"
                f" {int(places[place])} as computed by {'itself' if own else other} in invocation"
                f" {int(world.shadow.invocation[slot])}, from wrong data.",
                request_id=sequence.request_id,
                other_request_id=None if own else other,
                page=slot // world.stride,
                slot=slot % world.stride,
                severity=WRONG_DATA,
            )


def _length_words(
    world: World, passage: Passage, sequence: Sequence, lengths: tuple[int, int], slots: Ints
) -> str:
    return (
        f"A {passage.invocation.phase} of {sequence.request_id} attends to"
        f" {counted(lengths[0], 'position')} where its sequence has {lengths[1]}"
        + _what_lies_there(world, slots, sequence)
    )


def _prefix_words(
    world: World, passage: Passage, sequence: Sequence, places: Ints, slot: int
) -> str:
    return (
        f"A {passage.invocation.phase} of {sequence.request_id} reads its position {int(places[0])}"
        f" from slot {slot % world.stride} of page {slot // world.stride}, which"
        f" {_words(world, slot, sequence)}"
        + (f" ({len(places)} such slots)." if len(places) > 1 else ".")
    )


def _holds(world: World, slot: int, sequence: Sequence) -> tuple[str, str | None]:
    """Return what kind of wrong content a slot has, and whose it is."""
    shadow = world.shadow
    content, writer = shadow.content[slot], int(shadow.writer[slot])
    if content == NOTHING:
        return "uninitialized", None
    if content == PADDING:
        return "padding", None
    if writer == sequence.number:
        return "wrong-position", None
    other = world.name(writer)
    if shadow.freed_after[slot // world.stride] >= shadow.invocation[slot]:
        return "stale-after-free", other
    return "cross-request", other


def _words(world: World, slot: int, sequence: Sequence) -> str:
    """Say what a slot holds."""
    shadow = world.shadow
    cause, other = _holds(world, slot, sequence)
    invocation, position = int(shadow.invocation[slot]), int(shadow.position[slot])
    if cause == "uninitialized":
        return "was never written"
    if cause == "padding":
        return f"holds padding, written in invocation {invocation}"
    if cause == "wrong-position":
        return f"holds its own position {position} of invocation {invocation}, after other tokens"
    since = ", before the page was freed" if cause == "stale-after-free" else ""
    return f"holds position {position} of {other}, written in invocation {invocation}{since}"


def _what_lies_there(world: World, slots: Ints, sequence: Sequence) -> str:
    kinds: Counter[str] = Counter()
    for slot in slots.tolist():
        cause, other = _holds(world, slot, sequence)
        kinds[f"data of {other}" if other else cause] += 1
    if not kinds:
        return "."
    listed = ", ".join(f"{kind} in {number}" for kind, number in kinds.most_common(4))
    return f"; the slots beyond hold {listed}."


def _others(world: World, slots: Ints, sequence: Sequence) -> str | None:
    writers = world.shadow.writer[slots]
    foreign = writers[(writers >= 0) & (writers != sequence.number)]
    return world.name(int(foreign[0])) if len(foreign) else None


def _page(world: World, slot: int) -> int | None:
    return slot // world.stride if slot >= 0 else None
