"""Rules about what a row computes: its tokens, positions, and the keys and values it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from analysis.core.wording import counted
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.rules.base import Rule, about, each
from analysis.sanitizer.sequence import Sequence
from analysis.sanitizer.shadow import NOTHING, PADDING, Ints
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event


class TokenMismatch(Rule):
    name = "token-mismatch"
    sentence = "A row has the tokens of its request: its prompt, or the token chosen last."
    causes = each("wrong-token missing-token", "The row computes the answer to a different prompt.")
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for row, _ in step.known_rows():
            position = step.wrong_tokens[row]
            if position is None:
                continue
            missing = position >= int(step.first[row]) + int(step.tokens_of[row])
            cause = "missing-token" if missing else "wrong-token"
            what = "has no token" if missing else "has a wrong token"
            yield about(step, row, cause, f"{what} at position {position}", WRONG_DATA)


class PositionMismatch(Rule):
    name = "position-mismatch"
    sentence = "A row starts at the next position of its sequence, on a page of its block table."
    causes = each(
        "ahead behind no-page", "The token's key and value are written to the wrong place."
    )
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        some_outside = step.outside.any()
        for row, _ in step.known_rows():
            first = int(step.first[row])
            if step.has_wrong_place(row):
                due, slot = step.due_first[row], int(step.write_slots[row, 0])
                cause = "ahead" if first > due else "behind"
                what = f"starts at position {first}, but its next position is {due}"
                page = slot // state.stride if slot >= 0 else None
                yield about(step, row, cause, what, WRONG_DATA, page=page)
            count = int(step.tokens_of[row])
            if some_outside and len(outside := np.flatnonzero(step.outside[row, :count])):
                position, table = first + int(outside[0]), step.invocation.tables[row]
                place = position // state.stride
                where = f"outside its block table of {counted(len(table), 'page')}"
                if place < len(table):
                    page = int(table[place])
                    where = f"to page {page}, which is {state.where(page)}"
                what = f"writes position {position} {where}"
                yield about(step, row, "no-page", what, WRONG_DATA)


class SeqLenMismatch(Rule):
    name = "seq-len-mismatch"
    sentence = "A row attends to exactly the positions of its own sequence."
    causes = {
        "overread": "The row's softmax includes slots that do not belong to its sequence.",
        "underread": "The row does not attend to its own last tokens.",
    }
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for row, sequence in step.known_rows():
            seq_len, own = int(step.invocation.seq_lens[row]), step.lengths[row]
            if seq_len == own:
                continue
            slots = step.read_slots[row][step.beyond[row]]
            cause = "overread" if seq_len > own else "underread"
            message = partial(
                _length_message, state, step.label(row), sequence, seq_len, own, slots
            )
            writers = state.shadow.writer[slots]
            foreign = writers[(writers >= 0) & (writers != sequence.number)]
            other = state.name(int(foreign[0])) if len(foreign) else None
            page, slot = divmod(int(slots[0]), state.stride) if len(slots) else (None, None)
            # Beyond the block table there is nothing to read.
            severity = WRONG_DATA if len(slots) or seq_len < own else AT_RISK
            own_id = sequence.request_id
            yield Finding(cause, message, own_id, other, page=page, slot=slot, severity=severity)


class ContextOverflow(Rule):
    name = "context-overflow"
    sentence = "No row writes or attends to a position beyond the model's context length."
    causes = each(
        "past-context", "The model does not support such positions: its output is meaningless."
    )

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        limit = state.context_length
        if limit is None:
            return
        ends = step.first + step.tokens_of
        ends = np.maximum(ends, step.invocation.seq_lens)[: step.invocation.real]
        if not (ends > limit).any():
            return
        for row, sequence in step.known_rows():
            if ends[row] > limit and self.is_new(sequence.request_id):
                last = int(ends[row]) - 1
                what = f"reaches position {last}, but the model's context length is {limit}"
                yield about(step, row, "past-context", what)

    def after_done(self, state: EngineState, event: Event) -> None:
        if event.request_id not in state.given_up:  # false after `late`
            self.reported.discard((event.request,))

    after_late = after_done


class WriteWriteConflict(Rule):
    name = "write-write-conflict"
    sentence = "Two rows of an invocation never write different content to the same slot."
    causes = each("two-rows padding-row", "One row overwrites the other's key and value.")
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        slots, contents = step.write_slots.ravel(), step.write_content.ravel()
        order = np.argsort(slots, kind="stable")
        slots, contents = slots[order], contents[order]
        rows = order // step.write_slots.shape[1]
        twice = (slots[1:] == slots[:-1]) & (contents[1:] != contents[:-1]) & (slots[1:] >= 0)
        twice &= rows[1:] != rows[:-1]
        if not twice.any():
            return
        place = int(np.flatnonzero(twice)[0])
        one, two = sorted(rows[place : place + 2].tolist())
        other, place = step.invocation.request_of(two), int(slots[place])
        cause = "padding-row" if other is None else "two-rows"
        what = f"{other or f'padding row {two}'} writes other data to the same {state.place(place)}"
        yield about(step, one, cause, what, slot=place, other_request_id=other)


class WrongKVRead(Rule):
    name = "wrong-kv-read"
    sentence = "Every slot that a row attends to holds the key and value of its own prefix."
    causes = each(
        "cross-request stale-after-free uninitialized padding wrong-position",
        "The row attends to keys and values of other tokens, so its output is wrong.",
    )
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        if not step.wrong.any():
            return
        for row, sequence in step.known_rows():
            places = np.flatnonzero(step.wrong[row])
            if not len(places):
                continue
            slot = int(step.read_slots[row, int(places[0])])
            cause, other = _content(state, slot, sequence)
            message = partial(_read_message, state, step.label(row), sequence, places, slot)
            own_id, (page, slot) = sequence.request_id, divmod(slot, state.stride)
            yield Finding(cause, message, own_id, other, page=page, slot=slot, severity=WRONG_DATA)


class TaintedKVRead(Rule):
    name = "tainted-kv-read"
    sentence = "No slot that a row attends to was computed from wrong data."
    causes = each(
        "own-steps other-request",
        "The results of wrong data are now in the cache, and every later step reads them.",
    )
    tolerates_gaps = True

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        if not step.inherited.any():
            return
        for row, sequence in step.known_rows():
            places = np.flatnonzero(step.inherited[row])
            if not len(places):
                continue
            slots = step.read_slots[row, places]
            writers = state.shadow.writer[slots]
            foreign = np.flatnonzero(writers != sequence.number)
            place = int(foreign[0]) if len(foreign) else 0
            slot, other = int(slots[place]), state.name(int(writers[place]))
            own = other == sequence.request_id
            cause, other = ("own-steps", None) if own else ("other-request", other)
            what = (
                f"reads its position {int(places[place])}, which {other or 'the request itself'}"
                f" computed from wrong data in invocation {int(state.shadow.invocation[slot])}"
            )
            yield about(step, row, cause, what, WRONG_DATA, slot, other_request_id=other)


def _length_message(
    state: EngineState, label: str, sequence: Sequence, seq_len: int, own: int, slots: Ints
) -> str:
    kinds: Counter[str] = Counter()
    for slot in slots.tolist():
        cause, other = _content(state, slot, sequence)
        kinds[f"data of {other}" if other else cause] += 1
    listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(4))
    beyond = f"; slots read beyond its end: {listed}" if listed else ""
    attends = f"{label}: attends to {counted(seq_len, 'position')}"
    return f"{attends}, but its sequence has {own}{beyond}."


def _read_message(
    state: EngineState, label: str, sequence: Sequence, places: Ints, slot: int
) -> str:
    shadow = state.shadow
    cause, other = _content(state, slot, sequence)
    invocation, position = int(shadow.invocation[slot]), int(shadow.position[slot])
    holds = {
        "uninitialized": "was never written",
        "padding": f"holds padding, written in invocation {invocation}",
        "wrong-position": f"holds its position {position} after other tokens, written in invocation"
        f" {invocation}",
    }.get(cause, f"holds position {position} of {other}, written in invocation {invocation}")
    since = ", before the page was freed" if cause == "stale-after-free" else ""
    more = f" ({len(places)} such slots)" if len(places) > 1 else ""
    return (
        f"{label}: reads its position {int(places[0])} from {state.place(slot)}, which"
        f" {holds}{since}{more}."
    )


def _content(state: EngineState, slot: int, sequence: Sequence) -> tuple[str, str | None]:
    """Return why a slot's content is wrong (the cause), and the request that wrote it."""
    shadow = state.shadow
    content, writer = shadow.content[slot], int(shadow.writer[slot])
    if content == NOTHING:
        return "uninitialized", None
    if content == PADDING:
        return "padding", None
    if writer == sequence.number:
        return "wrong-position", None
    stale = shadow.freed_after[slot // state.stride] >= shadow.invocation[slot]
    return "stale-after-free" if stale else "cross-request", state.name(writer)
