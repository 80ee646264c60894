"""Executes an invocation on the shadow: the writes of all rows, then their reads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from analysis.sanitizer.sequence import Sequence
from analysis.sanitizer.shadow import (
    NO_WRITER,
    NOTHING,
    PADDING,
    UNKNOWN,
    Hashes,
    Ints,
    mix_one,
    prefix_hashes,
)
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.trace import Invocation

_ALL = 2**64 - 1
OUTSIDE = -1
"""A slot outside the row's block table, or on a page that does not exist."""


class ShadowStep:
    """Executes one invocation on the shadow memory; the rules read its arrays.

    Rows from `invocation.real` on are padding. The cost grows with the slots of the invocation, not
    with the pool.
    """

    def __init__(self, state: EngineState, invocation: Invocation) -> None:
        self.state, self.invocation = state, invocation
        real = invocation.real
        rows, width = invocation.tokens.shape
        self.first: Ints = (
            np.zeros(rows, np.int64) if invocation.starts is None else invocation.starts
        )
        """First position that each row writes, [rows]."""
        self.sequences: list[Sequence | None] = [
            None if (s := state.last_of.get(r)) is None or s.unknown else s
            for r in invocation.request_ids
        ]
        """The sequence of each real row; None if it is not followed."""
        self._resume()
        self.twin_of = _twins(invocation, self.first)
        """For each real row, the first row with the same request and arguments (or itself)."""
        self.repeats = [
            s is not None and (self.twin_of[row] != row or self._again(row, s))
            for row, s in enumerate(self.sequences)
        ]
        """Whether each real row repeats an earlier step."""
        self._leave_beams_out()
        prefills = invocation.phase == "prefill"
        self.executed_by = [
            -1 if s is None else s.prefilled[2] if prefills and s.prefilled else s.last_invocation
            for s in self.sequences
        ]
        """The invocation of the last step or prefill of each real row's sequence."""
        self.due_first = [
            -1 if s is None else int(self.first[row]) if again else _next(s, invocation)
            for row, (s, again) in enumerate(zip(self.sequences, self.repeats, strict=True))
        ]
        """The position from which each real row must start."""
        self.due_tokens = [
            None if s is None else _due_tokens(s, invocation, row, again)
            for row, (s, again) in enumerate(zip(self.sequences, self.repeats, strict=True))
        ]
        """The tokens that each real row must have; None if unknown."""
        positions = self.first[:, None] + np.arange(width)
        if invocation.phase == "decode":
            self.tokens_of = np.ones(rows, dtype=np.int64)
        else:
            self.tokens_of = np.clip(invocation.seq_lens - self.first, 0, width)
        """Number of tokens of each row, without padding, [rows]."""
        self.tokens_of[real:] = 0
        self.write_slots = self._slots(positions)
        """[rows, width]"""
        self.wrong_tokens: list[int | None] = [
            self._wrong_token(row, due) for row, due in enumerate(self.due_tokens)
        ]
        """First position with a wrong or missing token in each real row, or None."""
        self.write_content = self._contents()
        written = self.write_slots >= 0
        self.before = np.where(written, state.shadow.content[self.write_slots], UNKNOWN)
        """Content of the slots before the writes, [rows, width]."""
        self.writer_before = np.where(written, state.shadow.writer[self.write_slots], NO_WRITER)
        self.outside = ~written
        """Positions that have no page and are not written, [rows, width]."""
        self.position_before = np.where(written, state.shadow.position[self.write_slots], -1)
        self._write(positions, written)
        self._advance()
        self._read()

        shadow = state.shadow
        held = shadow.content[self.read_slots]
        strange = (held != self.expected) & (held != UNKNOWN)
        known = np.array([s is not None for s in self.sequences], dtype=bool)[:, None]
        own = self.reads & ~self.beyond & known
        self.wrong = own & strange
        """Attended slots that do not hold the row's own prefix."""
        self.inherited = own & ~strange & shadow.tainted[self.read_slots]
        """Attended slots with the row's own prefix, computed from wrong data."""
        if invocation.phase == "decode" and self.inherited.size:
            # The row's own writes in this step are not inherited.
            self.inherited &= self.read_slots != self.write_slots[:real, :1]
        self._taint()

    def _resume(self) -> None:
        """Add the tokens of a cached prefix to a sequence that starts after it."""
        for row, sequence in enumerate(
            self.sequences if self.invocation.phase == "prefill" else ()
        ):
            first = int(self.first[row])
            if sequence is not None and sequence.prompt and sequence.length < first:
                sequence.restart(np.array(sequence.prompt[:first], dtype=np.int64), 0)

    def _again(self, row: int, sequence: Sequence) -> bool:
        """Return whether a row repeats the last step of its sequence.

        A decode repeats if it has the token of the last step and no token was chosen since. A
        prefill repeats if it starts at the same position as the last one.
        """
        invocation, first = self.invocation, int(self.first[row])
        if invocation.phase == "prefill":
            return sequence.prefilled is not None and first == sequence.prefilled[0]
        if first != sequence.length - 1 or not sequence.invocations:
            return False
        # This row is a late repeat if another row of the request executes its next step.
        if sequence.chose_next and invocation.request_ids.count(sequence.request_id) == 1:
            return False
        if sequence.prompt is not None and first < len(sequence.prompt):
            return False
        token = int(invocation.tokens[row, 0])
        return sequence.hash_before(first) + mix_one(token, first) & _ALL == sequence.last

    def _leave_beams_out(self) -> None:
        """Stop following requests with several different rows in one invocation (beams)."""
        ids = self.invocation.request_ids
        if len(set(ids)) == len(ids):
            return
        steps = Counter(r for r, again in zip(ids, self.repeats, strict=True) if not again)
        for row, request_id in enumerate(ids):
            sequence = self.sequences[row]
            if sequence is not None and steps[request_id] > 1:
                sequence.unknown = True
                self.sequences[row], self.repeats[row] = None, False

    # -- writing ---------------------------------------------------------------------------

    def _slots(self, positions: Ints) -> Ints:
        """Return the slot of each position, by each row's block table."""
        tables, stride = self.invocation.tables, self.state.stride
        blocks = positions // stride
        inside = (blocks >= 0) & (blocks < tables.shape[1])
        rows = np.arange(len(tables))[:, None]
        pages = tables[rows, blocks if inside.all() else blocks.clip(0, tables.shape[1] - 1)]
        inside &= (pages >= 0) & (pages < self.state.page_count)
        slots: Ints = np.where(inside, pages * stride + positions % stride, OUTSIDE)
        return slots

    def _contents(self) -> Hashes:
        """Return what each row writes: prefixes of its tokens, or padding."""
        invocation = self.invocation
        contents = np.full(self.write_slots.shape, PADDING, dtype=np.uint64)
        for row, sequence in enumerate(self.sequences):
            count, first = int(self.tokens_of[row]), int(self.first[row])
            if sequence is None:
                contents[row] = UNKNOWN
            elif invocation.phase == "decode":
                token = mix_one(int(invocation.tokens[row, 0]), first)
                contents[row, 0] = sequence.hash_before(first) + token & _ALL
            else:
                tokens = invocation.tokens[row, :count]
                contents[row, :count] = prefix_hashes(tokens, first, sequence.hash_before(first))
        return contents

    def _write(self, positions: Ints, written: npt.NDArray[np.bool_]) -> None:
        shadow, real = self.state.shadow, self.invocation.real
        writers = np.full(len(positions), NO_WRITER, dtype=np.int32)
        writers[:real] = [NO_WRITER if s is None else s.number for s in self.sequences]
        slots = self.write_slots[written]
        shadow.content[slots] = self.write_content[written]
        shadow.writer[slots] = np.broadcast_to(writers[:, None], positions.shape)[written]
        shadow.position[slots] = positions[written]
        shadow.invocation[slots] = self.invocation.invocation_id
        shadow.tainted[slots] = False

    def _wrong_token(self, row: int, due: Ints | None) -> int | None:
        if due is None:
            return None
        if self.invocation.phase == "decode":
            same = int(due[0]) == int(self.invocation.tokens[row, 0])
            return None if same else int(self.first[row])
        executed = self.invocation.tokens[row, : int(self.tokens_of[row])]
        # `seq-len-mismatch` reports a length that is too short.
        due = due[: max(0, int(self.invocation.seq_lens[row]) - int(self.first[row]))]
        both = min(len(due), len(executed))
        unlike = np.flatnonzero(due[:both] != executed[:both])
        if not len(unlike) and len(executed) >= len(due):
            return None
        return int(self.first[row]) + (int(unlike[0]) if len(unlike) else both)

    def _advance(self) -> None:
        """Advance each sequence by its correct step, even if the executed one was wrong."""
        for row, sequence in enumerate(self.sequences):
            if sequence is None:
                continue
            if self.repeats[row]:
                sequence.result = self.invocation.result(row) if sequence.is_whole else None
                continue
            due, first = self.due_tokens[row], self.due_first[row]
            executed = self.invocation.tokens[row, : int(self.tokens_of[row])]
            if self.invocation.phase == "decode":
                sequence.append(int(due[0] if due is not None else executed[0]))
            else:
                sequence.restart(executed if due is None else due, first)
            sequence.step(self.invocation.phase, first, self.invocation.invocation_id)
            if sequence.is_whole:
                sequence.result = self.invocation.result(row)

    # -- reading ---------------------------------------------------------------------------

    def _read(self) -> None:
        invocation, stride, real = self.invocation, self.state.stride, self.invocation.real
        size = invocation.tables.shape[1] * stride
        lengths = invocation.seq_lens[:real] if invocation.phase == "decode" else self.first[:real]
        width = int(min(max(lengths, default=0), size)) if (lengths > 0).any() else 0
        positions = np.arange(width)
        self.reads = positions[None, :] < lengths[:, None]
        """Mask of the slots that each real row attends to, [real, width]."""
        self.read_slots = self._slots(np.broadcast_to(positions, (len(invocation.tables), width)))[
            :real
        ]
        self.reads &= self.read_slots >= 0
        self.expected = np.full((real, width), NOTHING, dtype=np.uint64)
        """The prefix hash that each slot must hold."""
        self.lengths = [0 if s is None else s.length for s in self.sequences]
        """Length of each real row's sequence, including this invocation's tokens."""
        for row, sequence in enumerate(self.sequences):
            if sequence is not None:
                if self.repeats[row]:
                    past = invocation.phase == "prefill" and sequence.prefilled
                    self.lengths[row] = past[1] if past else int(self.first[row]) + 1
                count = min(width, self.lengths[row])
                self.expected[row, :count] = sequence.hashes[:count]
        own = np.array(self.lengths, dtype=np.int64)
        self.beyond = self.reads & (positions[None, :] >= own[:, None])
        """Attended slots beyond the row's length."""
        self.beyond[[row for row, s in enumerate(self.sequences) if s is None]] = False

    def _taint(self) -> None:
        """Taint the writes of rows that read wrong data."""
        real = self.invocation.real
        bad = self.wrong.any(axis=1) | self.inherited.any(axis=1) | self.beyond.any(axis=1)
        for row, sequence in enumerate(self.sequences):
            if sequence is not None and (
                self.wrong_tokens[row] is not None or self.has_wrong_place(row)
            ):
                bad[row] = True
        slots = self.write_slots[:real][bad]
        self.state.shadow.tainted[slots[slots >= 0]] = True

    # -- queries of the rules --------------------------------------------------------------

    def has_wrong_place(self, row: int) -> bool:
        """Return whether a row starts at a wrong position."""
        return self.due_first[row] >= 0 and int(self.first[row]) != self.due_first[row]

    def label(self, row: int) -> str:
        """Return the beginning of a message about a row."""
        request = self.invocation.request_of(row)
        owner = f"padding row {row}" if request is None else request
        return f"{self.invocation.phase} of {owner}"

    def known_rows(self) -> list[tuple[int, Sequence]]:
        """Return the followed real rows with their sequences."""
        return [(row, s) for row, s in enumerate(self.sequences) if s is not None]

    def pages_of(self, row: int) -> tuple[int, ...]:
        """Return the pages of a row's block table within its length."""
        blocks = -(-self.lengths[row] // self.state.stride)
        return tuple(self.invocation.tables[row, :blocks].tolist())


def _twins(invocation: Invocation, starts: Ints) -> list[int]:
    """Return, for each real row, the first row with the same request and arguments."""
    ids = invocation.request_ids
    twins = list(range(len(ids)))
    if len(set(ids)) == len(ids):
        return twins
    for row, request_id in enumerate(ids):
        for other in range(row):
            if ids[other] == request_id and all(
                np.array_equal(values[row], values[other])
                for values in (invocation.tokens, invocation.seq_lens, starts, invocation.tables)
            ):
                twins[row] = other
                break
    return twins


def _next(sequence: Sequence, invocation: Invocation) -> int:
    """Return the next position of a sequence."""
    if invocation.phase == "decode":
        return sequence.length
    return 0 if invocation.starts is None else sequence.length


def _due_tokens(sequence: Sequence, invocation: Invocation, row: int, again: bool) -> Ints | None:
    """Return the tokens of a sequence's next step, or of the repeated step."""
    if sequence.prompt is None:
        return None
    if invocation.phase == "prefill":
        prompt = np.array(sequence.prompt, dtype=np.int64)
        if invocation.starts is None:
            return prompt
        return prompt[int(invocation.starts[row]) : int(invocation.seq_lens[row])]
    if again:
        return None  # a repeat has the token of the last step by definition
    place = sequence.length - len(sequence.prompt)
    token = sequence.answer[place] if 0 <= place < len(sequence.answer) else None
    return None if token is None else np.array([token], dtype=np.int64)
