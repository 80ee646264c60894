"""What the device reads: its arguments, and slots that other invocations write."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding
from analysis.sanitizer.rules.base import Rule, about, each
from analysis.sanitizer.shadow import UNKNOWN, Ints
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event
from analysis.shortfin.verify import FINISHED


class ArgumentChanged(Rule):
    name = "argument-changed"
    sentence = "Until an invocation has finished, its arguments are what they were filled with."
    causes = each(
        "tokens seq_lens start_positions block_tables",
        "The device computes with other arguments than intended.",
    )
    limits = {
        "": "Not detected are changes that are undone before the call returns, and those that are"
        " undone before the end and look like a transfer under way."
    }

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for changed in step.invocation.changed or ():
            argument, row, read = changed["argument"], changed["row"], changed["read"]
            request, late = step.invocation.request_of(row), changed["moment"] == FINISHED
            moment = "it had finished" if late else "the call had returned"
            filled = f"{argument} was filled with {changed['filled']} at column {changed['column']}"
            what = f"{filled} of row {row}, and was {read} when {moment}"
            # A change after the call had returned may come after the read.
            severity = AT_RISK if late or request is None else WRONG_DATA
            page = read if argument == "block_tables" else None
            yield about(step, row, argument, what, severity, page=page)


class ReadBeforeWrite(Rule):
    name = "read-before-write"
    sentence = "An invocation reads a slot only after the invocation that writes it has finished."
    causes = {"write-pending": "The reader does not wait: it may read the slot before the write."}
    limits = {
        "allocations": "A row's result shows that its invocation has finished; the order on the"
        " device itself is not seen.",
        "records": "The order on the device itself is not seen.",
    }

    def __init__(self) -> None:
        super().__init__()
        self._under_way: dict[int, tuple[int, Ints]] = {}
        """By invocation: its end, and the slots that it changes."""

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        invocation, shadow = step.invocation, state.shadow
        for number in [n for n, (end, _) in self._under_way.items() if end < invocation.seq]:
            del self._under_way[number]
        # Other rules report what a row must not read at all.
        sound = step.reads & ~step.wrong & ~step.beyond
        for number, (_, slots) in self._under_way.items():
            early = sound & (shadow.invocation[step.read_slots] == number)
            if not early.any():
                continue
            early &= np.isin(step.read_slots, slots)
            for row in np.flatnonzero(early.any(axis=1)).tolist():
                position = int(np.flatnonzero(early[row])[0])
                slot = int(step.read_slots[row, position])
                writer = state.name(int(shadow.writer[slot]))
                other = None if writer == invocation.request_ids[row] else writer
                what = (
                    f"reads its position {position} from {state.place(slot)} while invocation"
                    f" {number}, which writes it, has not finished"
                )
                yield about(
                    step, row, "write-pending", what, WRONG_DATA, slot, other_request_id=other
                )
        # A slot that is overwritten with its own content may be read meanwhile.
        changed = (step.write_slots >= 0) & (step.write_content != step.before)
        changed &= (step.before != UNKNOWN) & (step.write_content != UNKNOWN)
        # Without recorded choices, nothing shows when a row's result was there.
        if invocation.result_digests is not None:
            written = step.write_slots[changed]
            self._under_way[invocation.invocation_id] = invocation.end_seq, written

    def on_chosen(self, state: EngineState, event: Event) -> None:
        # A row's result is there before the engine has processed the other rows.
        sequence = state.last_of.get(event.request)
        result = None if sequence is None else sequence.result
        if result is not None and event.digest == result.digest:
            self._under_way.pop(result.invocation_id, None)
