"""The shortest schedule that still breaks a rule: fewer requests, fewer steps, fewer switches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, groupby

from analysis.interleavings.scenarios import IsolationError, Scenario, Schedule, Step
from analysis.interleavings.spec import Broken
from analysis.interleavings.stage import Stage

Open = Callable[[Scenario], Stage]


class Minimiser:
    """Tries schedules of one scenario for a rule; `open_stage` gives a stage for a part of it."""

    def __init__(self, scenario: Scenario, rule: str, open_stage: Open) -> None:
        self._scenario, self._rule, self._open = scenario, rule, open_stage
        self.tried = 0

    def breaks(self, steps: Sequence[Step]) -> Broken | None:
        """Return how the last of these steps breaks the rule; None if it does not, or cannot be."""
        self.tried += 1
        stage = self._open(self._scenario)
        try:
            found = stage.run(Schedule(tuple(steps)))
        except IsolationError:
            return None
        finally:
            stage.close()
        broken = [b for b in (found[-1] if found else ()) if b.rule == self._rule]
        return broken[0] if broken else None

    def whole_requests(self, schedule: Schedule) -> Schedule:
        """Leave out requests of a schedule in which they come one after the other."""
        names = list(dict.fromkeys(step.request for step in schedule.steps))
        for count in range(1, len(names)):
            for kept in combinations(names, count):
                steps = tuple(step for step in schedule.steps if step.request in kept)
                for length in range(1, len(steps) + 1):
                    # All but the last have ended, as before.
                    whole = {s.request for s in steps[:length]} == set(kept)
                    if whole and self.breaks(steps[:length]):
                        return Schedule(steps[:length])
        return schedule

    def every_step(self, schedule: Schedule) -> Schedule:
        """Leave out all that can be left out, one step at a time or many; then switch less."""
        steps = list(schedule.steps)
        size = max(1, len(steps) // 2)
        while True:
            for at in range(0, len(steps), size):
                fewer = _renamed([*steps[:at], *steps[at + size :]], self._order(steps))
                if fewer and self.breaks(fewer):
                    steps = fewer
                    size = min(size, max(1, len(steps) // 2))
                    break
            else:
                if size == 1:
                    break
                size = max(1, size // 2)
        return Schedule(tuple(self._calmer(steps)))

    def _order(self, steps: Sequence[Step]) -> dict[str, list[str]]:
        return {
            name: [s.operation for s in steps if s.request == name]
            for name in dict.fromkeys(s.request for s in steps)
        }

    def _calmer(self, steps: list[Step]) -> list[Step]:
        """Move whole turns of requests, as long as that makes fewer switches."""
        improved = True
        while improved:
            improved = False
            turns = [list(turn) for _, turn in groupby(steps, key=lambda step: step.request)]
            for at in range(len(turns)):
                for to in range(len(turns)):
                    rest = turns[:at] + turns[at + 1 :]
                    moved = [s for turn in (*rest[:to], turns[at], *rest[to:]) for s in turn]
                    if _switches(moved) < _switches(steps) and self.breaks(moved):
                        steps, improved = moved, True
                        break
                if improved:
                    break
        return steps


def _renamed(steps: Sequence[Step], order: dict[str, list[str]]) -> list[Step]:
    """Give the steps that are left the operations that their requests begin with."""
    taken = dict.fromkeys(order, 0)
    renamed = []
    for step in steps:
        renamed.append(Step(step.request, order[step.request][taken[step.request]]))
        taken[step.request] += 1
    return renamed


def _switches(steps: Sequence[Step]) -> int:
    return Schedule(tuple(steps)).switches
