"""Two operations at once on two threads, which are preempted within them, at every line.

What no order of the whole operations explains is a race. A release that does all on one thread
cannot come to it; one with a thread for every request can, unless a lock prevents it.
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
    """A rule that two operations break only if one is preempted within."""

    scenario: str
    before: Schedule
    """What is done first, one operation after the other."""
    first: Step
    second: Step
    """The two that run at once, the first one first."""
    preemption_points: tuple[int, ...]
    """After how many yield points each preemption comes."""
    preempted_at: tuple[str, ...]
    """Where that is, as file:line."""
    rule: str
    message: str
    reachable: bool
    """Whether the release can come to it on its own threads."""

    def __str__(self) -> str:
        at = ", ".join(self.preempted_at)
        return f"{self.before}  {self.first} | {self.second}  preempted at {at}"


@dataclass
class Races:
    """What was found over all pairs of operations."""

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
    """Run every pair of operations of two workers at once, with every choice of preemptions.

    At most `preemptions` a run, at every line of the release's cache (or every instruction). A race
    is what no order of the two whole operations breaks, once a pair and rule. `operations` limits
    it to pairs of these two. After `budget_s` seconds it ends incomplete.
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
                                 tuple(at), violation.rule, violation.message,
                                 reachable=not factory.kind.fatal)
                        )  # fmt: skip
    return races


def _pairs(factory: HarnessFactory, scenario: str) -> Iterator[tuple[list[Step], Step, Step]]:
    """Return each pair of next steps of the first two workers, with what is done before it."""
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
    """Two steps at once, run with different preemption points."""

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
        """As the last run without preemptions had them."""
        self._files = [
            str(module.__file__)
            for name, module in list(sys.modules.items())
            if name.rpartition(".")[2] in _MODULES and ".kvcache." in name
        ]

    def run(self, points: tuple[int, ...]) -> tuple[list[Violation], list[str]]:
        """Run them; return what does not hold then, and where they were preempted."""
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
            if hasattr(owner, "_lock"):  # its maker may have imported the lock's class itself
                owner._lock = threading.Lock()
        return harness
