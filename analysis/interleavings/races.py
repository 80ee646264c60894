"""Runs two operations on two threads, preempted at every line.

A violation that no order of the two whole operations gives is a race. It can occur in a release
with a thread for every request, unless a lock prevents it, but not in one with a single thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from analysis.interleavings.examine import HarnessFactory
from analysis.interleavings.harness import CacheHarness
from analysis.interleavings.scenarios import SCENARIOS, Schedule, Step, select
from analysis.interleavings.scheduler import (
    Deadlock,
    ThreadScheduler,
    preemption_plans,
    scheduled_locks,
)
from analysis.interleavings.spec import Violation, check

_MODULES = ("trie_attention_cache", "base_attention_cache", "page_pool", "kvcache_utils")


@dataclass(frozen=True)
class Race:
    """A rule that two operations break only if one of them is preempted."""

    scenario: str
    before: Schedule
    """Steps that run before them."""
    first: Step
    second: Step
    """The two concurrent steps; `first` starts first."""
    preemption_points: tuple[int, ...]
    """Number of yield points before each preemption."""
    preempted_at: tuple[str, ...]
    """Places of the preemptions, as file:line."""
    rule: str
    message: str
    reachable: bool
    """Whether it can occur on the release's own threads."""

    def __str__(self) -> str:
        at = ", ".join(self.preempted_at)
        return f"{self.before}  {self.first} | {self.second}  preempted at {at}"


@dataclass
class Races:
    """Races of all pairs of operations."""

    pairs: int = 0
    runs: int = 0
    complete: bool = True
    found: list[Race] = field(default_factory=list)


def find_races(
    scenario: str,
    prefix_sharing: str = "trie",
    treatments: Sequence[str] = (),
    *,
    preemptions: int = 1,
    instructions: bool = False,
    operations: tuple[str, str] | None = None,
    budget_s: float = 60.0,
) -> Races:
    """Run every pair of operations of two workers concurrently, with every choice of preemptions.

    A run has at most `preemptions` preemptions, at lines of the release's cache (or instructions).
    A race is reported once for each pair and rule. `operations` limits the pairs to these two
    operations. After `budget_s` seconds the result is incomplete.
    """
    select([scenario], prefix_sharing, ())
    races, until = Races(), time.monotonic() + budget_s
    with HarnessFactory(prefix_sharing, treatments) as factory:
        for before, first, second in _pairs(factory, scenario):
            if operations is not None and (first.operation, second.operation) != operations:
                continue
            pair = _Pair(factory, scenario, before, (first, second), instructions)
            swapped = _Pair(factory, scenario, before, (second, first), instructions)
            races.pairs += 1
            reachable = factory.kind.can_overlap(first.operation, second.operation)
            known = {v.rule for run in (pair, swapped) for v in run.run(())[0]}
            for points in preemption_plans(pair.yield_points, preemptions):
                if time.monotonic() > until:
                    races.complete = False
                    return races
                races.runs += 1
                violations, at = pair.run(points)
                for violation in violations:
                    if violation.rule not in known:
                        known.add(violation.rule)
                        races.found.append(
                            Race(scenario, Schedule(tuple(before)), first, second, points,
                                 tuple(at), violation.rule, violation.message, reachable)
                        )  # fmt: skip
    return races


def _pairs(factory: HarnessFactory, scenario: str) -> Iterator[tuple[list[Step], Step, Step]]:
    """Yield each pair of next steps of the first two workers, with the steps before it."""
    described = SCENARIOS[scenario]
    with closing(factory.open(described)) as harness:
        steps = {n: [Step(n, o) for o in d.operations] for n, d in harness.drivers.items()}
    warm = [step for request in described.before for step in steps[request.name]]
    one, other = (steps[worker.name] for worker in described.workers[:2])
    for i, first in enumerate(one):
        for j, second in enumerate(other):
            before = [*warm, *one[:i], *other[:j]]
            yield before, first, second
            yield before, second, first


class _Pair:
    """Two concurrent steps, run with different preemption points."""

    def __init__(
        self,
        factory: HarnessFactory,
        scenario: str,
        before: Sequence[Step],
        steps: tuple[Step, Step],
        instructions: bool,
    ) -> None:
        self._factory, self._scenario, self._before = factory, SCENARIOS[scenario], before
        self._steps, self._instructions = steps, instructions
        self._scheduler: ThreadScheduler | None = None
        self.yield_points = 0
        """Violations of the last run without preemptions."""
        self._files = [
            str(module.__file__)
            for name, module in list(sys.modules.items())
            if name.rpartition(".")[2] in _MODULES and ".kvcache." in name
        ]

    def run(self, points: tuple[int, ...]) -> tuple[list[Violation], list[str]]:
        """Run the two steps; return the violations and the places of the preemptions."""
        with scheduled_locks(lambda: self._scheduler):
            harness = self._open()
        with closing(harness):
            for step in self._before:
                harness.perform(step.request)
            self._scheduler = scheduler = ThreadScheduler(
                self._files, points, instructions=self._instructions
            )
            try:
                errors = scheduler.run(
                    [lambda s=step: harness.perform(s.request) for step in self._steps]  # type: ignore[misc]
                )
            except Deadlock as deadlock:
                return [Violation("operation-raises", str(deadlock))], scheduler.preempted_at
            finally:
                self._scheduler = None
            if not points:
                self.yield_points = scheduler.yield_points
            harness.look()
            raised = [
                Violation("operation-raises", f"{error!r}") for error in errors if error is not None
            ]
            return [*raised, *check(harness.view)], scheduler.preempted_at

    def _open(self) -> CacheHarness:
        harness = self._factory.open(self._scenario)
        for owner in (harness.cache, harness.pool):
            if hasattr(owner, "_lock"):  # its class may have imported the lock class directly
                owner._lock = threading.Lock()
        return harness
