"""What an examination found, in data, in a sentence and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.interleavings.scenarios import Schedule
from analysis.interleavings.spec import RULES

REAL = "on this release's threads"
OTHERWISE = "only if called otherwise"


@dataclass(frozen=True)
class Failure:
    """A rule that an interleaving breaks, by the shortest schedule that still does."""

    scenario: str
    schedule: Schedule
    rule: str
    message: str
    happens: str
    """REAL or OTHERWISE."""
    sequential: bool
    """Whether it also happens when the workers have their turn one after the other."""
    interleavings: int = 0
    """How many of the scenario's interleavings break the rule; 0 if not all were covered."""

    @property
    def needs(self) -> str:
        """What it takes, in words."""
        return "any order" if self.sequential else "interleaving"

    @property
    def sentence(self) -> str:
        """The rule that is broken."""
        return RULES[self.rule]

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `schedule` can be replayed, `reachable` by the release's threads."""
        return {
            **asdict(self), "schedule": str(self.schedule), "reachable": self.happens == REAL
        }  # fmt: skip


@dataclass(frozen=True)
class Covered:
    """One scenario, and how much of it was carried out."""

    scenario: str
    workers: int
    interleavings: int
    """All that there are; 0 failing ones mean little unless it is complete."""
    states: int
    steps: int
    failing: int
    complete: bool


@dataclass(frozen=True)
class Result:
    """What examining the cache of a release came to."""

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    elsewhere: tuple[str, ...]
    """Treatments that change nothing here, since they act on other parts of an engine."""
    threads: str
    failures: list[Failure] = field(default_factory=list)
    scenarios: list[Covered] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no rule was broken."""
        return not self.failures

    @property
    def interleavings(self) -> int:
        """How many interleavings were covered."""
        return sum(covered.interleavings for covered in self.scenarios if covered.complete)

    @property
    def complete(self) -> bool:
        """Whether every interleaving of every scenario was covered in time."""
        return all(covered.complete for covered in self.scenarios)

    def shortest(self) -> list[Failure]:
        """Return the shortest failure of each rule, those that happen in any order apart."""
        found: dict[tuple[str, bool], Failure] = {}
        for failure in sorted(self.failures, key=lambda f: (f.sequential, len(f.schedule))):
            found.setdefault((failure.rule, failure.sequential), failure)
        return list(found.values())

    @property
    def words(self) -> str:
        """All of it in a sentence or two."""
        what = f"the cache of shortfin {self.release} with prefix sharing {self.prefix_sharing}"
        if self.treatments:
            what += f", treated with {', '.join(self.treatments)},"
        many = f"{self.interleavings:,} interleavings of {len(self.scenarios)} scenarios"
        if self.ok:
            said = f"In all {many}, {what} keeps every rule."
            if not self.complete:
                said = f"In those {many} that there was time for, {what} breaks no rule."
        else:
            alone = list(dict.fromkeys(f.rule for f in self.failures if f.sequential))
            only = [f.rule for f in self.failures if f.rule not in alone]
            together = list(dict.fromkeys(only))
            count = len(alone) + len(together)
            said = f"Over {many}, {what} breaks {count} rule{'s' if count > 1 else ''}:"
            if alone:
                said += f" whatever the order, {', '.join(alone)}"
            if together:
                said += f"{';' if alone else ''} only interleaved, {', '.join(together)}"
            said += "."
            if not self.complete:
                said += " Time ended before all were covered."
        if self.elsewhere:
            said += f" Acting elsewhere: {', '.join(self.elsewhere)}."
        return said

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "release": self.release,
            "prefix_sharing": self.prefix_sharing,
            "treatments": list(self.treatments),
            "elsewhere": list(self.elsewhere),
            "threads": self.threads,
            "ok": self.ok,
            "complete": self.complete,
            "interleavings": self.interleavings,
            "words": self.words,
            "duration_s": self.duration_s,
            "failures": [failure.as_json() for failure in self.failures],
            "scenarios": [asdict(covered) for covered in self.scenarios],
        }

    def table(self) -> list[dict[str, Any]]:
        """Return a row for every scenario."""
        return [
            {
                "scenario": covered.scenario,
                "workers": covered.workers,
                "interleavings": covered.interleavings,
                "failing": covered.failing,
                "complete": covered.complete,
                "breaks": _listed(self.failures, covered.scenario, sequential=True),
                "breaks by interleaving": _listed(
                    self.failures, covered.scenario, sequential=False
                ),
            }
            for covered in self.scenarios
        ]


def _listed(failures: Sequence[Failure], scenario: str, *, sequential: bool) -> str:
    names = [f.rule for f in failures if f.scenario == scenario and f.sequential is sequential]
    return ", ".join(names)
