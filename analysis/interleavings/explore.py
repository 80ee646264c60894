"""Explores every interleaving of a scenario's cache operations, on a single thread.

Each interleaving is run from its beginning. Interleavings that lead to the same state have the same
continuations, which are run once and counted for each of them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import permutations

from analysis.interleavings.harness import CacheHarness
from analysis.interleavings.scenarios import Schedule, Step
from analysis.interleavings.spec import Violation, check

ANY = "any"
"""Key in the counts for all rules together."""

Found = dict[str, tuple[Schedule, Violation]]
"""A short prefix of an interleaving that breaks each rule."""


class _OutOfTime(Exception):  # noqa: N818  # not an error
    pass


@dataclass
class Exploration:
    """Result of exploring a scenario."""

    interleavings: int
    """Number of interleavings; all were covered if the result is complete."""
    states: int = 0
    """Number of different states."""
    steps: int = 0
    """Number of executed operations."""
    failing: Counter[str] = field(default_factory=Counter)
    """Number of interleavings that break each rule, and any rule (`any`)."""
    first: Found = field(default_factory=dict)
    serial: Found = field(default_factory=dict)
    """The same for interleavings in which one worker follows the other."""
    complete: bool = True


class Explorer:
    """Explores one scenario. `open_harness` returns a new harness; only one is open at a time.

    `merge` merges equal states; not valid for treatments with hidden state.
    """

    def __init__(
        self, open_harness: Callable[[], CacheHarness], *, merge: bool, until_s: float = math.inf
    ) -> None:
        self._open_harness, self._merge, self._until_s = open_harness, merge, until_s
        self._harness: CacheHarness | None = None
        self._seen: dict[object, Counter[str]] = {}

    def explore(self) -> Exploration:
        """Run all interleavings, or as many as there is time for."""
        with closing(self._open_harness()) as harness:
            operations = {
                name: [Step(name, operation) for operation in driver.operations]
                for name, driver in harness.drivers.items()
            }
            scenario = harness.scenario
        before = [step for request in scenario.before for step in operations[request.name]]
        self._programs = [operations[request.name] for request in scenario.workers]
        self._found = Exploration(multinomial([len(program) for program in self._programs]))
        for order in permutations(self._programs):
            self._run_serially([*before, *(step for program in order for step in program)])
        try:
            harness = self._replayed(before)
            violations = check(harness.view)
            failing = self._visit(harness, before, (0,) * len(self._programs))
            for rule in [v.rule for v in violations] + [ANY] * bool(violations):
                failing[rule] = self._found.interleavings
            self._found.failing = failing
        except _OutOfTime:
            self._found.complete = False
        finally:
            self._close()
        self._found.states = len(self._seen)
        return self._found

    def _run_serially(self, steps: Sequence[Step]) -> None:
        with closing(self._open_harness()) as harness:
            for number, step in enumerate(steps, 1):
                self._step(harness, step, steps[:number], self._found.serial)

    def _visit(
        self, harness: CacheHarness, prefix: list[Step], done: tuple[int, ...]
    ) -> Counter[str]:
        """Return the number of interleavings with this prefix that break each rule after it."""
        key = harness.fingerprint() if self._merge else (*prefix,)
        if (known := self._seen.get(key)) is not None:
            return known
        counts: Counter[str] = Counter()
        here: CacheHarness | None = harness
        for worker, program in enumerate(self._programs):
            if done[worker] == len(program):
                continue
            if time.monotonic() > self._until_s:
                raise _OutOfTime
            there = here if here is not None else self._replayed(prefix)
            here = None  # from here on, the harness is ahead
            path = [*prefix, program[done[worker]]]
            violations = self._step(there, path[-1], path, self._found.first)
            after = tuple(n + (w == worker) for w, n in enumerate(done))
            below = self._visit(there, path, after)
            left = [len(p) - n for p, n in zip(self._programs, after, strict=True)]
            rules = {v.rule for v in violations} | ({ANY} if violations else set())
            for rule in rules:
                counts[rule] += multinomial(left)
            for rule, count in below.items():
                if rule not in rules:
                    counts[rule] += count
        self._seen[key] = counts
        return counts

    def _step(
        self, harness: CacheHarness, step: Step, path: Sequence[Step], found: Found
    ) -> tuple[Violation, ...]:
        self._found.steps += 1
        violations = harness.step(step.request)
        for violation in violations:
            if violation.rule not in found or len(found[violation.rule][0]) > len(path):
                found[violation.rule] = Schedule(tuple(path)), violation
        return violations

    def _replayed(self, prefix: Sequence[Step]) -> CacheHarness:
        """Return a new harness after running the prefix again."""
        self._close()
        self._harness = harness = self._open_harness()
        for step in prefix:
            harness.perform(step.request)
        self._found.steps += len(prefix)
        harness.look()
        return harness

    def _close(self) -> None:
        if self._harness is not None:
            self._harness.close()
            self._harness = None


def multinomial(lengths: Sequence[int]) -> int:
    """Return the number of interleavings of programs of these lengths."""
    ways = math.factorial(sum(lengths))
    for length in lengths:
        ways //= math.factorial(length)
    return ways
