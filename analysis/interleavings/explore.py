"""Every interleaving of a scenario, one operation of the cache at a time, on a single thread.

An interleaving is carried out from its beginning. Two that lead to the same state have the same
future, so it is carried out once and counted for both.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import permutations

from analysis.interleavings.scenarios import Schedule, Step
from analysis.interleavings.spec import Broken, check
from analysis.interleavings.stage import Stage

Open = Callable[[], Stage]
ANY = "any"
"""Stands among the counts for all rules together."""


class _OutOfTime(Exception):  # noqa: N818  # it is no error
    pass


@dataclass
class Exploration:
    """What every interleaving of one scenario came to."""

    interleavings: int
    """How many there are; as many were covered, if it is complete."""
    states: int = 0
    """Different states that were met."""
    steps: int = 0
    """Operations that were carried out."""
    failing: Counter[str] = field(default_factory=Counter)
    """Interleavings that break each rule somewhere, and `any`."""
    first: dict[str, tuple[Schedule, Broken]] = field(default_factory=dict)
    """A short beginning of an interleaving that breaks each rule."""
    serial: dict[str, tuple[Schedule, Broken]] = field(default_factory=dict)
    """The same, where it was one worker after the other."""
    complete: bool = True


class Explorer:
    """Explores one scenario; `open_stage` gives a new stage, of which it has one at a time."""

    def __init__(self, open_stage: Open, *, memory: bool, until_s: float = math.inf) -> None:
        self._open, self._memory, self._until_s = open_stage, memory, until_s
        self._stage: Stage | None = None
        self._seen: dict[object, Counter[str]] = {}

    def explore(self) -> Exploration:
        """Carry out all interleavings, or as many as there is time for."""
        self._found = Exploration(0)
        with self._new() as stage:
            workers = [[r.name for r in worker] for worker in stage.scenario.workers]
            lengths = [sum(len(stage.actors[n].steps) for n in w) for w in workers]
            before = [Step(r.name, s) for r in stage.scenario.before
                      for s in stage.actors[r.name].steps]  # fmt: skip
            self._programmes = [
                [Step(n, s) for n in w for s in stage.actors[n].steps] for w in workers
            ]
        self._found.interleavings = multinomial(lengths)
        for order in permutations(range(len(workers))):
            self._serial([*before, *(step for w in order for step in self._programmes[w])])
        try:
            stage = self._at(before)
            broken = check(stage.picture)
            failing = self._visit(stage, before, tuple([0] * len(workers)))
            for rule in [b.rule for b in broken] + [ANY] * bool(broken):
                failing[rule] = self._found.interleavings
            self._found.failing = failing
        except _OutOfTime:
            self._found.complete = False
        finally:
            self._close()
        self._found.states = len(self._seen)
        return self._found

    def _serial(self, steps: Sequence[Step]) -> None:
        with self._new() as stage:
            for number, step in enumerate(steps, 1):
                for broken in self._step(stage, step):
                    self._keep(self._found.serial, steps[:number], broken)

    def _visit(self, stage: Stage, prefix: list[Step], done: tuple[int, ...]) -> Counter[str]:
        """Return how many interleavings that begin so break each rule after this."""
        key = stage.fingerprint() if self._memory else (*prefix,)
        if (known := self._seen.get(key)) is not None:
            return known
        counts: Counter[str] = Counter()
        here: Stage | None = stage
        for worker, programme in enumerate(self._programmes):
            if done[worker] == len(programme):
                continue
            if time.monotonic() > self._until_s:
                raise _OutOfTime
            there = here if here is not None else self._at(prefix)
            here = None  # it goes on from now
            step = programme[done[worker]]
            broken = self._step(there, step)
            path = [*prefix, step]
            after = tuple(n + (w == worker) for w, n in enumerate(done))
            for one in broken:
                self._keep(self._found.first, path, one)
            below = self._visit(there, path, after)
            left = [len(p) - n for p, n in zip(self._programmes, after, strict=True)]
            rules = {one.rule for one in broken} | ({ANY} if broken else set())
            for rule in rules:
                counts[rule] += multinomial(left)
            for rule, count in below.items():
                if rule not in rules:
                    counts[rule] += count
        self._seen[key] = counts
        return counts

    def _step(self, stage: Stage, step: Step) -> tuple[Broken, ...]:
        self._found.steps += 1
        return stage.step(step.request)

    def _at(self, prefix: Sequence[Step]) -> Stage:
        """Return a new stage on which the beginning was carried out again."""
        self._close()
        self._stage = stage = self._open()
        for step in prefix:
            stage.go(step.request)
        self._found.steps += len(prefix)
        stage.look()
        return stage

    @contextmanager
    def _new(self) -> Iterator[Stage]:
        yield self._at(())
        self._close()

    def _close(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    @staticmethod
    def _keep(
        found: dict[str, tuple[Schedule, Broken]], path: Sequence[Step], broken: Broken
    ) -> None:
        if broken.rule not in found or len(found[broken.rule][0]) > len(path):
            found[broken.rule] = Schedule(tuple(path)), broken


def multinomial(lengths: Sequence[int]) -> int:
    """Return in how many ways programmes of these lengths can be interleaved."""
    ways = math.factorial(sum(lengths))
    for length in lengths:
        ways //= math.factorial(length)
    return ways
