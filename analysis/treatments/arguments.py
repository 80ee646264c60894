"""Treatments of the arguments of the compiled model: lengths and start positions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from analysis.shortfin.treatment import LiveEngine, treatment
from analysis.treatments.invocations import Ints, PendingInvocation, edit_invocations


def _set_lengths(engine: LiveEngine, undo: ExitStack, length: Callable[[Ints], Ints]) -> None:
    """Set the length of each decode row from its start position."""

    def edit(invocation: PendingInvocation) -> None:
        if invocation.phase == "decode":
            starts = invocation.arrays["start_positions"][: invocation.real]
            invocation.arrays["seq_lens"][: invocation.real] = length(starts)

    edit_invocations(engine, undo, edit)


@treatment(
    "correct-seq-lens",
    "Rows attend to slots beyond their sequence, which hold data of other requests.",
    upstream="#873",
    acts_on="server",
    needs=["history-lengths"],
)
def correct_seq_lens(engine: LiveEngine, undo: ExitStack) -> None:
    """Sets the length of each decode row to its start position plus one."""
    _set_lengths(engine, undo, lambda starts: starts + 1)


@treatment(
    "undo-correct-seq-lens",
    "The too long lengths made 3.1 fail, not another difference from later releases.",
    upstream="the reverse of #873",
    acts_on="server",
    needs=["exact-lengths"],
)
def undo_correct_seq_lens(engine: LiveEngine, undo: ExitStack) -> None:
    """Sets the length of each decode row to twice its start position plus one, as in 3.1."""
    _set_lengths(engine, undo, lambda starts: 2 * starts + 1)


@treatment(
    "zero-start-positions",
    "Padding rows start at position 1 and read a slot that was never written.",
    upstream="#826",
    acts_on="server",
    needs=["padding-at-one"],
)
def zero_start_positions(engine: LiveEngine, undo: ExitStack) -> None:
    """Sets the start position of padding rows of a decode to 0."""

    def edit(invocation: PendingInvocation) -> None:
        if invocation.phase == "decode":
            invocation.arrays["start_positions"][invocation.real :] = 0

    edit_invocations(engine, undo, edit)
