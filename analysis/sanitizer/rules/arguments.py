"""Rules about races with the device: changed arguments, and slots read before they are written."""

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
    sentence = "The arguments of an invocation do not change until it has finished."
    causes = each(
        "tokens seq_lens start_positions block_tables",
        "The device computes with wrong arguments.",
    )
    limits = {
        "": "A change is not detected if it is undone before the call returns, or if it is undone"
        " before the end and looks like a transfer under way."
    }

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        for changed in step.invocation.changed or ():
            argument, row, read = changed["argument"], changed["row"], changed["read"]
            request, late = step.invocation.request_of(row), changed["moment"] == FINISHED
            moment = "after the invocation" if late else "when the call returned"
            place = f"{argument}[{row}, {changed['column']}]"
            what = f"{place} was filled with {changed['filled']}, but was {read} {moment}"
            # The device may have read the argument before a late change.
            severity = AT_RISK if late or request is None else WRONG_DATA
            page = read if argument == "block_tables" else None
            yield about(step, row, argument, what, severity, page=page)


class ReadBeforeWrite(Rule):
    name = "read-before-write"
    sentence = "An invocation reads a slot only after the invocation that writes it has finished."
    causes = {"write-pending": "The slot may be read before it is written."}
    limits = {
        "allocations": "An invocation counts as finished when the engine has a row's result; the"
        " order on the device is not observed.",
        "decoder": "The order on the device is not observed.",
    }

    def __init__(self) -> None:
        super().__init__()
        self._under_way: dict[int, tuple[int, Ints]] = {}
        """The end and the changed slots of each unfinished invocation."""

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterator[Finding]:
        invocation, shadow = step.invocation, state.shadow
        for number in [n for n, (end, _) in self._under_way.items() if end < invocation.seq]:
            del self._under_way[number]
        # Other rules report slots that the row must not read at all.
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
                    f"reads its position {position} from {state.place(slot)} before invocation"
                    f" {number}, which writes the slot, has finished"
                )
                yield about(
                    step, row, "write-pending", what, WRONG_DATA, slot, other_request_id=other
                )
        # A slot that is overwritten with the same content may be read at any time.
        changed = (step.write_slots >= 0) & (step.write_content != step.before)
        changed &= (step.before != UNKNOWN) & (step.write_content != UNKNOWN)
        # Without recorded results, the time when a row's result was available is unknown.
        if invocation.result_digests is not None:
            written = step.write_slots[changed]
            self._under_way[invocation.invocation_id] = invocation.end_seq, written

    def on_chosen(self, state: EngineState, event: Event) -> None:
        # A row's result is available before the engine has processed the other rows.
        sequence = state.last_of.get(event.request)
        result = None if sequence is None else sequence.result
        if result is not None and event.digest == result.digest:
            self._under_way.pop(result.invocation_id, None)
