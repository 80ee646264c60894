"""What the device reads: arguments as they were filled, slots whose writers have landed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.shadow import UNKNOWN, Ints
from analysis.sanitizer.world import Event, World
from analysis.shortfin.verify import LANDED


class ArgumentsAsFilled(Rule):
    """Nobody changes an argument between filling and reading."""

    name = "argument-changed"
    sentence = "Until an invocation has landed its arguments are what they were filled with."

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        for changed in invocation.changed or ():
            argument, row, column = changed["argument"], changed["row"], changed["column"]
            filled, read, when = changed["filled"], changed["read"], changed["moment"]
            request = invocation.request_ids[row] if row < invocation.real else None
            moment = "it had landed" if when == LANDED else "the call had returned"
            yield Finding(
                cause=argument,
                message=f"{argument} of {request or 'a padding row'} (row {row}, place {column} of"
                f" a {invocation.phase}) was filled with {filled}, and was {read} when {moment}.",
                request_id=request,
                page=read if argument == "block_tables" else None,
                # What was changed only after the call had returned may have been read before.
                severity=AT_RISK if when == LANDED or request is None else WRONG_DATA,
            )


class LandedBeforeRead(Rule):
    """An invocation reads what is written, and not what is still being written."""

    name = "read-before-write"
    sentence = "An invocation reads a slot only after the invocation that writes it has landed."

    def __init__(self) -> None:
        self._under_way: dict[int, tuple[int, Ints]] = {}
        """By invocation: where it ends, and the slots that it changes."""

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        for number in [n for n, (end, _) in self._under_way.items() if end < invocation.seq]:
            del self._under_way[number]
        # What a row should not read at all is told by other rules.
        sound = passage.reads & ~passage.wrong & ~passage.beyond
        for number, (_, slots) in self._under_way.items():
            last = world.shadow.invocation[passage.read_slots] == number
            early = sound & last
            if not early.any():
                continue
            early &= np.isin(passage.read_slots, slots)
            for row in np.flatnonzero(early.any(axis=1)).tolist():
                position = int(np.flatnonzero(early[row])[0])
                slot = int(passage.read_slots[row, position])
                request, writer = invocation.request_ids[row], int(world.shadow.writer[slot])
                other = world.name(writer)
                yield Finding(
                    cause="write-pending",
                    message=f"A {invocation.phase} of {request} began to read its position"
                    f" {position}"
                    f" from slot {slot % world.stride} of page {slot // world.stride} while"
                    " invocation"
                    f" {number}, which writes it, had not landed.",
                    request_id=request,
                    other_request_id=None if other == request else other,
                    page=slot // world.stride,
                    slot=slot % world.stride,
                    severity=WRONG_DATA,
                )
        # What is written again as it was may be read meanwhile.
        changed = (passage.write_slots >= 0) & (passage.write_content != passage.before)
        changed &= (passage.before != UNKNOWN) & (passage.write_content != UNKNOWN)
        # Where no choices are noted, nothing shows when a row's result was there.
        if invocation.result_digests is not None:
            self._under_way[invocation.invocation_id] = (
                invocation.end_seq,
                passage.write_slots[changed],
            )

    def on_chosen(self, world: World, event: Event) -> Iterator[Finding]:
        # A row's result is there before the engine is through with the other rows'.
        sequence = world.last_of.get(event.request_id or "")
        result = None if sequence is None else sequence.result
        if result is not None and event.digest == result.digest:
            self._under_way.pop(result.invocation_id, None)
        return iter(())
