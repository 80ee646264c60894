"""Treatments of the arguments of the compiled model: lengths and start positions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from analysis.shortfin.treatment import LiveEngine, treatment
from analysis.treatments.invocations import Ints, PendingInvocation, edit_invocations


def _set_lengths(engine: LiveEngine, undo: ExitStack, length: Callable[[Ints], Ints]) -> None:
    """Set the length of each row of a decode by its start position."""

    def edit(invocation: PendingInvocation) -> None:
        if invocation.phase == "decode":
            starts = invocation.arrays["start_positions"][: invocation.real]
            invocation.arrays["seq_lens"][: invocation.real] = length(starts)

    edit_invocations(engine, undo, edit)


@treatment(
    "correct-seq-lens",
    "Rows attend to slots beyond their own sequence, with data of other requests.",
    upstream="#873",
    acts_on="server",
    needs=["history-lengths"],
)
def correct_seq_lens(engine: LiveEngine, undo: ExitStack) -> None:
    """The length of each row of a decode is its start position plus one."""
    _set_lengths(engine, undo, lambda starts: starts + 1)


@treatment(
    "undo-correct-seq-lens",
    "The lengths that are too long made 3.1 fail, not a later change.",
    upstream="the reverse of #873",
    acts_on="server",
    needs=["exact-lengths"],
)
def undo_correct_seq_lens(engine: LiveEngine, undo: ExitStack) -> None:
    """The length of each row of a decode is its start position plus that of its history."""
    _set_lengths(engine, undo, lambda starts: 2 * starts + 1)


@treatment(
    "zero-start-positions",
    "Padding rows that start at position 1 read a slot that was never written.",
    upstream="#826",
    acts_on="server",
    needs=["padding-at-one"],
)
def zero_start_positions(engine: LiveEngine, undo: ExitStack) -> None:
    """Padding rows of a decode have start position 0."""

    def edit(invocation: PendingInvocation) -> None:
        if invocation.phase == "decode":
            invocation.arrays["start_positions"][invocation.real :] = 0

    edit_invocations(engine, undo, edit)
