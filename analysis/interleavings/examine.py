"""Runs every interleaving of the scenarios on the cache of the installed release."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from analysis.interleavings.explore import ANY, Exploration, Explorer
from analysis.interleavings.minimise import Minimiser
from analysis.interleavings.result import REAL, Covered, Failure, Result
from analysis.interleavings.scenarios import SCENARIOS, IsolationError, Scenario, chosen
from analysis.interleavings.stage import Stage
from analysis.shortfin.cache.driver import Actor, actor_of
from analysis.shortfin.config import PREFIX_SHARING
from analysis.shortfin.service import installed_service
from analysis.treatments import check_names

if TYPE_CHECKING:
    from analysis.shortfin.standalone import BareService

_ELSEWHERE = frozenset(
    ["big-pool", "survive-allocation-failure", "requeue-unboarded", "zero-page-tables",
     "zero-on-acquire", "poison-freed-pages"]
)  # fmt: skip
"""Treatments that could be applied to a cache by itself, and would change nothing that shows."""
_FORGETFUL = ("quarantine",)
"""Treatments that remember what cannot be seen in the cache: states may then not be merged."""


class Laboratory:
    """Opens stages for the installed release, one at a time."""

    def __init__(self, prefix_sharing: str, treatments: Iterable[str] = ()) -> None:
        if prefix_sharing not in PREFIX_SHARING:
            raise IsolationError(
                f"prefix_sharing {prefix_sharing!r} is unknown: choose none or trie."
            )
        self.release, _ = installed_service()
        self.kind: type[Actor] = actor_of(self.release)
        self.prefix_sharing, self.treatments = prefix_sharing, tuple(treatments)
        asked = check_names(self.treatments)
        for treatment in asked:
            treatment.check(self.release, prefix_sharing)
        from analysis.shortfin.standalone import BareSystem

        self._system = BareSystem()
        try:
            with closing(self._open(next(iter(SCENARIOS.values())), ())) as bare:
                adapter = bare.engine.service
            self.elsewhere = tuple(
                name
                for name, treatment in zip(self.treatments, asked, strict=True)
                if treatment.name in _ELSEWHERE or not _has(adapter, treatment.needs)
            )
        except BaseException:
            self._system.close()
            raise
        self.acting = tuple(n for n in self.treatments if n not in self.elsewhere)

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *error: object) -> None:
        self._system.close()

    def _open(self, scenario: Scenario, treatments: Sequence[str]) -> Stage:
        return Stage(self._system, self.kind, scenario, self.prefix_sharing, treatments)

    def open(self, scenario: Scenario) -> Stage:
        """Return a new stage, treated."""
        return self._open(scenario, self.acting)

    def explorer(self, scenario: Scenario, until_s: float) -> Explorer:
        """Return what explores a scenario until a moment of the monotonic clock."""
        memory = not any(name.startswith(_FORGETFUL) for name in self.acting)
        return Explorer(lambda: self.open(scenario), memory=memory, until_s=until_s)


def examine(
    prefix_sharing: str,
    treatments: Sequence[str] = (),
    scenarios: Iterable[str] | None = None,
    workers: Iterable[int] = (2, 3),
    budget_s: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Carry out every interleaving of the scenarios on the installed release's own cache.

    `scenarios` are names; by default all that say something about this prefix sharing, with as many
    workers as `workers` allows. When `budget_s` seconds are over, what is not covered by then is
    left out, and the result says that it is not complete. Failures come shortest first, each
    minimised. Raises CachelabError for what is unknown or does not apply to the release.
    """
    began = time.monotonic()
    with Laboratory(prefix_sharing, treatments) as lab:
        result = Result(
            lab.release, prefix_sharing, lab.treatments, lab.elsewhere, lab.kind.threads
        )
        names = chosen(scenarios, prefix_sharing, workers)
        for number, name in enumerate(names):
            left = budget_s - (time.monotonic() - began)
            last = number == len(names) - 1
            until = time.monotonic() + max(0.0, left) / (1 if last else 2)
            scenario = SCENARIOS[name]
            if progress is not None:
                progress(name)
            explored = lab.explorer(scenario, until).explore()
            result.failures.extend(_failures(lab, scenario, explored))
            result.scenarios.append(
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
    result.failures.sort(key=lambda f: (f.sequential, len(f.schedule)))
    object.__setattr__(result, "duration_s", time.monotonic() - began)
    return result


def leave_out(
    prefix_sharing: str,
    treatments: Sequence[str],
    workers: Iterable[int] = (2,),
    budget_s: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Result]:
    """Examine with each of these treatments left out alone, but for such as act elsewhere."""
    began = time.monotonic()
    with Laboratory(prefix_sharing, treatments) as lab:
        names, workers = lab.acting, tuple(workers)
    found = {}
    for number, name in enumerate(names):
        left = max(0.0, budget_s - (time.monotonic() - began)) / (len(names) - number)
        if progress is not None:
            progress(f"without {name}")
        rest = [other for other in treatments if other != name]
        found[name] = examine(prefix_sharing, rest, workers=workers, budget_s=left)
    return found


def _has(adapter: BareService, path: str) -> bool:
    """Tell whether there is such an attribute, by its dotted path."""
    owner: Any = adapter
    for name in path.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True


def _failures(lab: Laboratory, scenario: Scenario, explored: Exploration) -> Iterator[Failure]:
    for rule in dict.fromkeys([*explored.serial, *explored.first]):
        sequential = rule in explored.serial
        schedule, broken = (explored.serial if sequential else explored.first)[rule]
        minimiser = Minimiser(scenario, rule, lab.open)
        shorten = minimiser.whole_requests if sequential else minimiser.every_step
        least = shorten(schedule)
        yield Failure(
            scenario=scenario.name,
            schedule=least,
            rule=rule,
            message=(minimiser.breaks(least.steps) or broken).message,
            # Each step is one call that waits for nothing; whatever lies between two of them can
            # be another request's, on one thread as on many.
            happens=REAL,
            sequential=sequential,
            interleavings=explored.failing[rule],
        )
