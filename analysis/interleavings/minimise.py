"""Minimises a schedule that breaks a rule: fewer requests, steps and switches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import combinations, groupby

from analysis.core.minimise import fewest
from analysis.interleavings.harness import CacheHarness
from analysis.interleavings.scenarios import IsolationError, Scenario, Schedule, Step
from analysis.interleavings.spec import Violation


class Minimiser:
    """Tests schedules of one scenario for a rule, each on a new harness."""

    def __init__(
        self, scenario: Scenario, rule: str, open_harness: Callable[[Scenario], CacheHarness]
    ) -> None:
        self._scenario, self._rule, self._open_harness = scenario, rule, open_harness

    def breaks(self, steps: Sequence[Step]) -> Violation | None:
        """Return the violation by the last step; None if there is none, or if it is impossible."""
        with closing(self._open_harness(self._scenario)) as harness:
            try:
                found = harness.run(Schedule(tuple(steps)))
            except IsolationError:
                return None
        return next((v for v in (found[-1] if found else ()) if v.rule == self._rule), None)

    def whole_requests(self, schedule: Schedule) -> Schedule:
        """Remove requests of a schedule in which they follow each other."""
        names = list(dict.fromkeys(step.request for step in schedule.steps))
        for count in range(1, len(names)):
            for kept in combinations(names, count):
                steps = tuple(step for step in schedule.steps if step.request in kept)
                for length in range(1, len(steps) + 1):
                    # All except the last have ended, as before.
                    whole = {s.request for s in steps[:length]} == set(kept)
                    if whole and self.breaks(steps[:length]):
                        return Schedule(steps[:length])
        return schedule

    def every_step(self, schedule: Schedule) -> Schedule:
        """Remove steps, many at a time and then one by one; then reduce switches."""
        steps = fewest(schedule.steps, lambda steps: self.breaks(steps) is not None, _renamed)
        return Schedule(tuple(self._with_fewer_switches(steps)))

    def _with_fewer_switches(self, steps: list[Step]) -> list[Step]:
        """Move a request's consecutive steps together, if this reduces switches."""
        improved = True
        while improved:
            improved = False
            runs = [list(run) for _, run in groupby(steps, key=lambda step: step.request)]
            for at in range(len(runs)):
                for to in range(len(runs)):
                    rest = runs[:at] + runs[at + 1 :]
                    moved = [step for run in (*rest[:to], runs[at], *rest[to:]) for step in run]
                    if _switches(moved) < _switches(steps) and self.breaks(moved):
                        steps, improved = moved, True
                        break
                if improved:
                    break
        return steps


def _renamed(steps: Sequence[Step], original: Sequence[Step]) -> list[Step]:
    """Rename the remaining steps to the first operations of their requests."""
    operations: dict[str, list[str]] = {}
    for step in reversed(original):
        operations.setdefault(step.request, []).append(step.operation)
    return [Step(step.request, operations[step.request].pop()) for step in steps]


def _switches(steps: Sequence[Step]) -> int:
    return Schedule(tuple(steps)).switches
