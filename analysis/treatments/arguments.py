"""Treatments of the arguments of the compiled model: lengths and start positions."""

from __future__ import annotations

from contextlib import ExitStack

from analysis.shortfin.treatment import LiveEngine, Treatment
from analysis.treatments.invocations import PendingInvocation, edit_invocations


class CorrectSeqLens(Treatment):
    """Decodes attend to their own positions only."""

    name = "correct-seq-lens"
    hypothesis = "Rows attend to slots beyond their own sequence, with data of other requests."
    change = "The length of each row of a decode is its start position plus one."
    upstream = "#873"
    needs = frozenset({"history-lengths"})
    acts_on = "server"

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        def edit(invocation: PendingInvocation) -> None:
            if invocation.phase == "decode":
                starts = invocation.arrays["start_positions"]
                invocation.arrays["seq_lens"][: invocation.real] = starts[: invocation.real] + 1

        edit_invocations(engine, undo, edit)


class UndoCorrectSeqLens(Treatment):
    """Decodes attend to too many positions again, as 3.1 has them."""

    name = "undo-correct-seq-lens"
    hypothesis = "The lengths that are too long made 3.1 fail, not a later change."
    change = "The length of each row of a decode is its start position plus that of its history."
    upstream = "the reverse of #873"
    needs = frozenset({"exact-lengths"})
    acts_on = "server"

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        def edit(invocation: PendingInvocation) -> None:
            if invocation.phase == "decode":
                starts = invocation.arrays["start_positions"]
                invocation.arrays["seq_lens"][: invocation.real] = 2 * starts[: invocation.real] + 1

        edit_invocations(engine, undo, edit)


class ZeroStartPositions(Treatment):
    """Padding rows write the first slot of the padding page, not the second."""

    name = "zero-start-positions"
    hypothesis = "Padding rows that start at position 1 read a slot that was never written."
    change = "Padding rows of a decode have start position 0."
    upstream = "#826"
    needs = frozenset({"padding-at-one"})
    acts_on = "server"

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        def edit(invocation: PendingInvocation) -> None:
            if invocation.phase == "decode":
                invocation.arrays["start_positions"][invocation.real :] = 0

        edit_invocations(engine, undo, edit)
