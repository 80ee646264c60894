"""Treatments of what the compiled model is told: lengths and start positions."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from analysis.shortfin.treatment import Treatment
from analysis.treatments.flights import Boarded, edit_flights

if TYPE_CHECKING:
    from analysis.engine import Engine


class CorrectSeqLens(Treatment):
    """Decodes attend to their own positions only."""

    name = "correct-seq-lens"
    hypothesis = "Rows attend to slots beyond their own sequence, and meet what others left there."
    change = "The length of each decode's row is its start position plus one."
    upstream = "#873"
    releases = ("3.1.0",)
    fixes = ("3.1.0",)
    needs = "_flight_class"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        def edit(flight: Boarded) -> None:
            if flight.phase == "decode":
                starts = flight.arrays["start_positions"]
                flight.arrays["seq_lens"][: flight.real] = starts[: flight.real] + 1

        edit_flights(engine, undo, edit)


class UndoCorrectSeqLens(Treatment):
    """Decodes attend to too many positions again, as 3.1 has them."""

    name = "undo-correct-seq-lens"
    hypothesis = "It is the too long lengths that made 3.1 fail, and nothing that came later."
    change = "The length of each decode's row is its start position plus that of its history."
    upstream = "the reverse of #873"
    releases = ("3.9.0",)
    needs = "_flight_class"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        def edit(flight: Boarded) -> None:
            if flight.phase == "decode":
                starts = flight.arrays["start_positions"]
                flight.arrays["seq_lens"][: flight.real] = 2 * starts[: flight.real] + 1

        edit_flights(engine, undo, edit)


class ZeroStartPositions(Treatment):
    """Padding rows write the first slot of the padding page, not the second."""

    name = "zero-start-positions"
    hypothesis = "Padding rows that start at position 1 read a slot that nobody wrote."
    change = "Padding rows of a decode fly with start position 0."
    upstream = "#826"
    releases = ("3.1.0",)
    fixes = ("3.1.0",)
    needs = "_flight_class"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        def edit(flight: Boarded) -> None:
            if flight.phase == "decode":
                flight.arrays["start_positions"][flight.real :] = 0

        edit_flights(engine, undo, edit)
