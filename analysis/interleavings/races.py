"""Two operations at once on two threads, which change turns within them, at every line.

What whole operations in some order do not explain is a race. A release that does all on one thread
cannot come to it; one with a thread for every request can, unless a lock keeps it from that.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from analysis.interleavings.examine import Laboratory
from analysis.interleavings.result import OTHERWISE, REAL
from analysis.interleavings.scenarios import SCENARIOS, Schedule, Step, chosen
from analysis.interleavings.spec import Broken, check
from analysis.interleavings.stage import Stage
from analysis.interleavings.turns import Stuck, Turns, plans, turn_locks

_MODULES = ("trie_attention_cache", "base_attention_cache", "page_pool", "kvcache_utils")


@dataclass(frozen=True)
class Race:
    """A rule that two operations break only if they change turns within."""

    scenario: str
    before: Schedule
    """What is done first, one operation after the other."""
    first: Step
    second: Step
    """The two that are under way at once; the first has the first turn."""
    plan: tuple[int, ...]
    """After how many places each the turn passes on."""
    at: tuple[str, ...]
    """Where that is, as file:line."""
    rule: str
    message: str
    happens: str

    def __str__(self) -> str:
        """Tell what is done, and where the turn passes on."""
        return f"{self.before}  {self.first} | {self.second}  changing at {', '.join(self.at)}"


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
    """Run every pair of operations of two workers at once, with every change of turns.

    At most `preemptions` changes a run, at every line of the release's cache (or at every
    instruction). Told is what no order of the two whole operations breaks, once a pair and rule.
    `operations` limits it to pairs of these two. After `budget_s` seconds it ends incomplete.
    """
    chosen([scenario], prefix_sharing, ())
    races, until = Races(), time.monotonic() + budget_s
    with Laboratory(prefix_sharing, treatments) as lab:
        happens = OTHERWISE if lab.kind.fatal else REAL
        for before, first, second in _pairs(lab, scenario):
            if operations is not None and (first.operation, second.operation) != operations:
                continue
            pair = _Pair(lab, scenario, before, first, second, instructions)
            races.pairs += 1
            explained = (
                pair.whole() | _Pair(lab, scenario, before, second, first, instructions).whole()
            )
            told: set[str] = set()
            for plan in plans(pair.places, preemptions):
                if time.monotonic() > until:
                    races.complete = False
                    return races
                races.runs += 1
                broken, at = pair.run(plan)
                for one in broken:
                    if one.rule not in explained and one.rule not in told:
                        told.add(one.rule)
                        races.found.append(
                            Race(scenario, Schedule(tuple(before)), first, second, plan,
                                 tuple(at), one.rule, one.message, happens)
                        )  # fmt: skip
    return races


def _pairs(lab: Laboratory, scenario: str) -> Iterator[tuple[list[Step], Step, Step]]:
    """Return each pair of next steps of the first two workers, with what is done before it."""
    described = SCENARIOS[scenario]
    stage = lab.open(described)
    steps = {name: [Step(name, s) for s in actor.steps] for name, actor in stage.actors.items()}
    stage.close()
    warm = [step for request in described.before for step in steps[request.name]]
    one, other = (steps[worker[0].name] for worker in described.workers[:2])
    for i, first in enumerate(one):
        for j, second in enumerate(other):
            before = [*warm, *one[:i], *other[:j]]
            yield before, first, second
            yield before, second, first


class _Pair:
    """Two steps at once, run as often as there are plans."""

    def __init__(
        self,
        lab: Laboratory,
        scenario: str,
        before: Sequence[Step],
        first: Step,
        second: Step,
        instructions: bool,
    ) -> None:
        self._lab, self._scenario, self._before = lab, SCENARIOS[scenario], before
        self._steps, self._instructions = (first, second), instructions
        self._turns: Turns | None = None
        self.places = 0
        self._files = [
            str(module.__file__)
            for name, module in list(sys.modules.items())
            if name.rpartition(".")[2] in _MODULES and ".kvcache." in name
        ]

    def whole(self) -> set[str]:
        """Return the rules that are broken if they are done one after the other."""
        broken, _ = self.run(())
        return {one.rule for one in broken}

    def run(self, plan: tuple[int, ...]) -> tuple[list[Broken], list[str]]:
        """Run them by a plan; return what does not hold then, and where turns changed."""
        with turn_locks(lambda: self._turns):
            stage = self._open()
        try:
            for step in self._before:
                stage.go(step.request)
            self._turns = turns = Turns(self._files, plan, instructions=self._instructions)
            try:
                errors = turns.run([lambda s=s: stage.go(s.request) for s in self._steps])  # type: ignore[misc]
            except Stuck as stuck:
                return [Broken("raises", str(stuck))], turns.at
            finally:
                self._turns = None
            if not plan:
                self.places = turns.places
            stage.look()
            broken = [Broken("raises", f"{error!r}") for error in errors if error is not None]
            return [*broken, *check(stage.picture)], turns.at
        finally:
            stage.close()

    def _open(self) -> Stage:
        stage = self._lab.open(self._scenario)
        for owner in (stage.cache, stage.pool):
            if hasattr(owner, "_lock"):  # however its maker came by the lock's class
                owner._lock = threading.Lock()
        return stage
