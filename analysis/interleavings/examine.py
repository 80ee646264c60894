"""Runs every interleaving of the scenarios on the cache of the installed release."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from analysis.interleavings.explore import ANY, Exploration, Explorer
from analysis.interleavings.harness import CacheHarness
from analysis.interleavings.minimise import Minimiser
from analysis.interleavings.result import Covered, Failure, Result
from analysis.interleavings.scenarios import SCENARIOS, IsolationError, Scenario, select
from analysis.shortfin.cache import part_of
from analysis.shortfin.cache.driver import RequestDriver
from analysis.shortfin.config import PREFIX_SHARING
from analysis.shortfin.service import installed_service
from analysis.treatments import check_names

_WITH_MEMORY = ("quarantine",)
"""Treatments with hidden state, so that equal states of the cache must not be merged."""


class HarnessFactory:
    """Opens harnesses for the installed release, one at a time."""

    def __init__(self, prefix_sharing: str, treatments: Iterable[str] = ()) -> None:
        if prefix_sharing not in PREFIX_SHARING:
            raise IsolationError(f"Unknown prefix_sharing {prefix_sharing!r}. Choose none or trie.")
        self.release, _ = installed_service()
        self.kind: type[RequestDriver] = part_of(self.release, "driver").DRIVER
        self.prefix_sharing, self.treatments = prefix_sharing, tuple(treatments)
        asked = check_names(self.treatments)
        for treatment in asked:
            treatment.check(self.release, prefix_sharing)
        from analysis.shortfin.standalone import StandaloneSystem

        self._system = StandaloneSystem()
        self.active = tuple(
            name
            for name, treatment in zip(self.treatments, asked, strict=True)
            if treatment.acts_on == "cache"
        )
        """Treatments that act on a cache without a server; the others are inactive."""

    def __enter__(self) -> HarnessFactory:
        return self

    def __exit__(self, *error: object) -> None:
        self._system.close()

    @property
    def inactive(self) -> tuple[str, ...]:
        """Treatments that act only on other parts of an engine."""
        return tuple(name for name in self.treatments if name not in self.active)

    def open(self, scenario: Scenario) -> CacheHarness:
        """Return a new harness with the treatments."""
        return CacheHarness(self._system, self.kind, scenario, self.prefix_sharing, self.active)

    def explore(self, scenario: Scenario, until_s: float) -> Exploration:
        """Explore a scenario until a time on the monotonic clock."""
        merge = not any(name.startswith(_WITH_MEMORY) for name in self.active)
        return Explorer(lambda: self.open(scenario), merge=merge, until_s=until_s).explore()


def examine(
    prefix_sharing: str,
    treatments: Sequence[str] = (),
    scenarios: Iterable[str] | None = None,
    workers: Iterable[int] = (2, 3),
    budget_s: float = 60.0,
) -> Result:
    """Run every interleaving of the scenarios on the installed release's own cache.

    `scenarios` are names; default: all for this prefix sharing with a number of workers in
    `workers`. After `budget_s` seconds the result is incomplete. Failures are minimised and sorted,
    shortest first. Raises CachelabError for unknown names, or if a treatment does not apply.
    """
    began = time.monotonic()
    failures: list[Failure] = []
    covered: list[Covered] = []
    with HarnessFactory(prefix_sharing, treatments) as factory:
        names = select(scenarios, prefix_sharing, workers)
        for number, name in enumerate(names):
            left_s = max(0.0, budget_s - (time.monotonic() - began))
            share = 1 if number == len(names) - 1 else 2
            scenario = SCENARIOS[name]
            explored = factory.explore(scenario, time.monotonic() + left_s / share)
            failures += _failures(factory, scenario, explored)
            covered.append(
                Covered(
                    name,
                    len(scenario.workers),
                    explored.interleavings,
                    explored.states,
                    explored.steps,
                    explored.failing[ANY],
                    explored.complete,
                )
            )
    failures.sort(key=lambda f: (f.sequential, len(f.schedule)))
    return Result(
        factory.release, prefix_sharing, factory.treatments, factory.inactive, factory.kind.threads,
        failures, covered, time.monotonic() - began,
    )  # fmt: skip


def leave_out(
    prefix_sharing: str, treatments: Sequence[str], budget_s: float = 60.0
) -> dict[str, Result]:
    """Examine two workers without each of the active treatments; return the results by its name."""
    began = time.monotonic()
    with HarnessFactory(prefix_sharing, treatments) as factory:
        names = factory.active
    found = {}
    for number, name in enumerate(names):
        left_s = max(0.0, budget_s - (time.monotonic() - began)) / (len(names) - number)
        rest = [other for other in treatments if other != name]
        found[name] = examine(prefix_sharing, rest, workers=(2,), budget_s=left_s)
    return found


def _failures(
    factory: HarnessFactory, scenario: Scenario, explored: Exploration
) -> Iterator[Failure]:
    for rule in dict.fromkeys([*explored.serial, *explored.first]):
        sequential = rule in explored.serial
        schedule, violation = (explored.serial if sequential else explored.first)[rule]
        minimiser = Minimiser(scenario, rule, factory.open)
        shorten = minimiser.whole_requests if sequential else minimiser.every_step
        shortest = shorten(schedule)
        yield Failure(
            scenario=scenario.name,
            schedule=shortest,
            rule=rule,
            message=(minimiser.breaks(shortest.steps) or violation).message,
            sequential=sequential,
            interleavings=explored.failing[rule],
            # Every release can switch to another request between two operations.
            reachable=True,
        )
