"""How long cells take: what its adapter says of a release's pace, until cells are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from analysis.sweep.plan import Cell, Plan

START_S = 3.0
"""A cell's process, its engine's start and its end."""
_PACE = (0.1, 0.02, 0.02, 0.005)
"""Where an adapter does not say: first token and each further one, alone and in a full batch."""


class Estimate:
    """Seconds that cells of a plan take; better with every cell that was `measured`."""

    def __init__(self, plan: Plan, jobs: int = 1) -> None:
        self._plan, self._jobs = plan, jobs
        self._measured: dict[tuple[str, int], list[float]] = defaultdict(list)

    def measured(self, cell: Cell, seconds: float) -> None:
        """Learn from a cell that has ended."""
        self._measured[cell.release, cell.concurrency].append(seconds)

    def cell_s(self, cell: Cell) -> float:
        """Return the seconds that one cell may take, its deadline at most."""
        known = self._measured.get((cell.release, cell.concurrency))
        seconds = fmean(known) if known else START_S + self._asking_s(cell)
        return min(seconds, self._plan.cell_timeout_s)

    def total_s(self, cells: Iterable[Cell]) -> float:
        """Return the seconds that these cells may take together, `jobs` at a time."""
        return sum(self.cell_s(cell) for cell in cells) / self._jobs

    def _asking_s(self, cell: Cell) -> float:
        first, token, full_first, full_token = _pace(cell.release)
        batch = max(self._plan.batch_sizes)
        waves = -(-self._plan.request_count(cell.concurrency) // cell.concurrency)
        full, rest = divmod(cell.concurrency, batch)
        further = self._plan.max_new_tokens - 1
        # Full batches share the processor; what is left over waits for the batcher's strobes.
        seconds = full * (full_first + further * full_token)
        if rest:
            seconds += first + further * token
        return waves * seconds


def _pace(release: str) -> tuple[float, float, float, float]:
    from analysis import shortfin as adapters

    paces: dict[str, tuple[float, float, float, float]] = getattr(adapters, "PACE_S", {})
    return paces.get(release, _PACE)
