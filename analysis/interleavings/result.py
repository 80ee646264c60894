"""The result of an examination: data, a summary and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.core.wording import counted
from analysis.interleavings.scenarios import Schedule
from analysis.interleavings.spec import RULES


@dataclass(frozen=True)
class Failure:
    """A rule that an interleaving breaks, with the shortest schedule that breaks it."""

    scenario: str
    schedule: Schedule
    rule: str
    message: str
    sequential: bool
    """Whether it also occurs if one worker follows the other."""
    interleavings: int = 0
    """Number of the scenario's interleavings that break the rule; 0 if not all were covered."""
    reachable: bool = True
    """Whether the release can come to it on its own threads."""

    @property
    def needs(self) -> str:
        """When it occurs, in words."""
        return "any order" if self.sequential else "interleaving"

    @property
    def sentence(self) -> str:
        """The sentence of the broken rule."""
        return RULES[self.rule]


@dataclass(frozen=True)
class Covered:
    """Coverage of one scenario."""

    scenario: str
    workers: int
    interleavings: int
    """Number of interleavings; the absence of failures means little unless it is complete."""
    states: int
    steps: int
    failing: int
    complete: bool


@dataclass(frozen=True)
class Result:
    """The result of examining a release's cache."""

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    inactive_treatments: tuple[str, ...]
    """Treatments without effect, because they act on other parts of an engine."""
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
        """Number of covered interleavings."""
        return sum(covered.interleavings for covered in self.scenarios if covered.complete)

    @property
    def complete(self) -> bool:
        """Whether every interleaving of every scenario was covered in time."""
        return all(covered.complete for covered in self.scenarios)

    def shortest(self) -> list[Failure]:
        """Return the shortest failure of each rule, and the shortest one in any order."""
        found: dict[tuple[str, bool], Failure] = {}
        for failure in sorted(self.failures, key=lambda f: (f.sequential, len(f.schedule))):
            found.setdefault((failure.rule, failure.sequential), failure)
        return list(found.values())

    @property
    def words(self) -> str:
        """A summary of one to three sentences."""
        many = f"{self.interleavings:,} interleavings of {counted(len(self.scenarios), 'scenario')}"
        what = f"the cache of shortfin {self.release} with prefix sharing {self.prefix_sharing}"
        if self.treatments:
            what += f", treated with {', '.join(self.treatments)},"
        serial = list(dict.fromkeys(f.rule for f in self.failures if f.sequential))
        others = list(dict.fromkeys(f.rule for f in self.failures if f.rule not in serial))
        if self.ok and self.complete:
            text = f"In all {many}, {what} breaks no rule."
        elif self.ok:
            text = f"In the {many} that were covered in time, {what} breaks no rule."
        else:
            kinds = [("in any order", serial), ("only interleaved", others)]
            broken = [f"{how}, {', '.join(rules)}" for how, rules in kinds if rules]
            rules = counted(len(serial + others), "rule")
            text = f"Over {many}, {what} breaks {rules}: {'; '.join(broken)}."
            if not self.complete:
                text += " Not all were covered in the given time."
        if self.inactive_treatments:
            text += f" Without effect here: {', '.join(self.inactive_treatments)}."
        return text

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `schedule` is a text that can be replayed."""
        failures = [{**asdict(f), "schedule": str(f.schedule)} for f in self.failures]
        computed = ("ok", "complete", "interleavings", "words")
        plain = {**asdict(self), **{name: getattr(self, name) for name in computed}}
        return {**plain, "failures": failures}

    def table(self) -> list[dict[str, Any]]:
        """Return a row for every scenario."""
        return [
            {
                "scenario": covered.scenario,
                "workers": covered.workers,
                "interleavings": covered.interleavings,
                "failing": covered.failing,
                "complete": covered.complete,
                "breaks": self._rules(covered.scenario, sequential=True),
                "breaks by interleaving": self._rules(covered.scenario, sequential=False),
            }
            for covered in self.scenarios
        ]

    def _rules(self, scenario: str, *, sequential: bool) -> str:
        return ", ".join(
            f.rule for f in self.failures if f.scenario == scenario and f.sequential is sequential
        )
