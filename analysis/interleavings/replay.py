"""Runs a schedule again, with the owners of every page after each step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from analysis.interleavings.examine import HarnessFactory
from analysis.interleavings.scenarios import SCENARIOS, Schedule, Step, select
from analysis.interleavings.spec import Violation
from analysis.interleavings.view import CacheView

FREE, CACHED, PENDING_FREE, LEAKED, WITHHELD = (
    "free",
    "cached",
    "pending free",
    "leaked",
    "withheld",
)

Owners = tuple[tuple[str, ...], ...]
"""Owners of every page: names of requests, `free`, `cached` and so on."""


@dataclass(frozen=True)
class Moment:
    """The result of a step."""

    step: Step
    owners: Owners
    violations: tuple[Violation, ...]
    """Violations after it."""


@dataclass(frozen=True)
class Replay:
    """A schedule, step by step."""

    release: str
    prefix_sharing: str
    scenario: str
    treatments: tuple[str, ...]
    first: Owners
    """Owners of the pages before the first step."""
    moments: tuple[Moment, ...]

    @property
    def failing(self) -> int | None:
        """Index of the first step that breaks a rule; None if there is none."""
        return next((n for n, moment in enumerate(self.moments) if moment.violations), None)

    def __str__(self) -> str:
        """Return a line for each step, with the changed owners of pages and the violations."""
        lines, before, reported = [], self.first, set[str]()
        for moment in self.moments:
            changed = [
                f"page {page}: {' and '.join(new)}"
                for page, (old, new) in enumerate(zip(before, moment.owners, strict=True))
                if old != new
            ]
            lines.append(f"{moment.step!s:<12} {'; '.join(changed)}".rstrip())
            for violation in moment.violations:
                if violation.rule not in reported:
                    reported.add(violation.rule)
                    lines.append(f"    {violation.rule}: {violation.message}")
            before = moment.owners
        return "\n".join(lines)


def replay(
    scenario: str,
    schedule: Schedule | str,
    prefix_sharing: str = "trie",
    treatments: Sequence[str] = (),
) -> Replay:
    """Run a schedule of a scenario on the installed release's cache.

    Raises IsolationError for an unknown scenario, or a step that is not its request's next one.
    """
    select([scenario], prefix_sharing, ())
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    with HarnessFactory(prefix_sharing, treatments) as factory:
        with closing(factory.open(SCENARIOS[scenario])) as harness:
            first = owners(harness.view)
            moments = []
            for step in schedule.steps:
                (violations,) = harness.run(Schedule((step,)))
                moments.append(Moment(step, owners(harness.view), violations))
        return Replay(
            factory.release, prefix_sharing, scenario, factory.treatments, first, tuple(moments)
        )


def owners(view: CacheView) -> Owners:
    """Return the owners of each page."""
    found: list[list[str]] = [[] for _ in range(view.state.page_count)]
    kinds = {FREE: view.state.free, CACHED: view.cached, PENDING_FREE: view.state.duplicates,
             WITHHELD: (*view.withheld, *view.reserved)}  # fmt: skip
    for name, pages in kinds.items():
        for page in dict.fromkeys(pages):
            found[page].append(name)
    for request, held in view.state.holdings.items():
        for page in {*held, *view.block_tables.get(request, ())}:
            found[page].append(request)
    return tuple(tuple(names) or (LEAKED,) for names in found)
