"""Results of a staged validation: plain data with verdicts and bounds, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from analysis.stats.bounds import upper_bound
from analysis.stats.clustered import FEWEST
from analysis.studies.validation.plan import Settings

Verdict = Literal["clean", "failed", "undecided", "void"]
Outcome = Literal["validated", "failed", "undecided", "void"]


@dataclass(frozen=True)
class FindingGroup:
    """Sanitizer findings of one rule and cause at one level."""

    rule: str
    cause: str
    severity: str
    requests: int
    trials: int
    message: str
    """Of the first finding."""
    reason: str = ""
    """Why the group is tolerated, "" if it is not."""

    @property
    def name(self) -> str:
        """Rule and cause."""
        return f"{self.rule} ({self.cause})"


@dataclass(frozen=True)
class Level:
    """Result of one level: a number of concurrent requests on fresh engines."""

    concurrency: int
    needed: int
    """Accepted requests that the level needs."""
    confidence: float = 0.95
    rate: float = 0.01
    """The failure rate that would have shown with this confidence."""
    accepted: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    """Accepted requests that failed, by outcome."""
    rejected: int = 0
    """Requests that the engine never accepted; they are excluded from the failure rate."""
    retries: int = 0
    """How often a refused request was sent again."""
    trials: int = 0
    """Fresh engines."""
    failed_trials: int = 0
    """Engines with a failure, a finding or a leak, or that ended early."""
    workloads: Mapping[str, int] = field(default_factory=dict)
    """Number of engines for each workload."""
    at_once: int | None = None
    """Most requests that one engine worked on at once; None if unknown."""
    endings: tuple[str, ...] = ()
    """Messages of engines that ended early."""
    findings: tuple[FindingGroup, ...] = ()
    tolerated: tuple[FindingGroup, ...] = ()
    leaked: int = 0
    """Pages neither free nor cached when no request is running, over all engines."""
    controls: int = 0
    """Engines in which a fault was injected."""
    detected: int = 0
    """Controls in which the sanitizer detected the fault."""
    faults: tuple[str, ...] = ()
    """Faults of all controls, also of those in which nothing could be injected."""
    unchecked: tuple[str, ...] = ()
    """Messages on what was not checked."""
    peak_rss_bytes: int | None = None
    """Largest resident memory of an engine's process."""
    pages_in_use: int | None = None
    """Most pages out of the pool at once."""
    page_count: int | None = None
    seconds: float = 0.0
    """Time of all engines together."""
    run: str = ""
    """Directory of the run, below that of the validation."""
    failing: tuple[str, str] | None = None
    """Trial and request that explain the failure; the request is "" if none is known."""
    explanation: str = ""

    @property
    def failed(self) -> int:
        """Accepted requests that failed."""
        return sum(self.failures.values())

    @property
    def verdict(self) -> Verdict:
        """Failures need no control; a level without any is clean only with a detected control."""
        if self.failed or self.endings or self.findings or self.leaked:
            return "failed"
        if self.detected < self.controls:
            return "void"
        if not self.controls or self.unchecked or self.accepted < self.needed:
            return "undecided"
        return "clean"

    @property
    def upper(self) -> float:
        """One-sided upper bound of the failure rate, if requests are independent."""
        return upper_bound(self.failed, self.accepted, self.confidence)

    @property
    def upper_of_engines(self) -> float:
        """One-sided upper bound of the share of engines with a failure; engines are independent.

        With several workloads it holds for their mix: without a failure it bounds the mean of the
        engines' rates, since unequal rates are less likely to show none than equal ones.
        """
        return upper_bound(self.failed_trials, self.trials, self.confidence)

    @property
    def unbounded(self) -> list[str]:
        """Workloads with too few engines for a bound of their own."""
        return sorted(name for name, engines in self.workloads.items() if engines < FEWEST)

    @property
    def ran(self) -> int:
        """Requests that ran at once: fewer than were sent where the engine refused some."""
        refused = self.retries or self.rejected
        return min(self.concurrency, self.at_once) if refused and self.at_once else self.concurrency

    @property
    def name(self) -> str:
        """Requests that ran at once, and how many were sent if that was more."""
        offered = f" (offered {self.concurrency})" if self.ran < self.concurrency else ""
        return f"{self.ran} at once{offered}"


@dataclass(frozen=True)
class Isolated:
    """Result for the cache alone, with its operations in every order."""

    ok: bool | None
    """None if the examination did not finish."""
    interleavings: int = 0
    complete: bool = False
    """Whether all interleavings were executed."""
    failures: tuple[str, ...] = ()
    """Messages of failures that the release's own threads can reach."""
    unreachable: int = 0
    """Failures that they cannot reach."""
    problem: str = ""
    """Why there is no result."""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Clean only if all interleavings were executed."""
        if self.ok is None:
            return "undecided"
        if self.failures:
            return "failed"
        return "clean" if self.complete else "undecided"


@dataclass(frozen=True)
class StagedValidation:
    """One release with one set of treatments, from the cache alone up to the highest level."""

    settings: Settings
    isolated: Isolated | None = None
    """None if it was not requested."""
    results: tuple[Level, ...] = ()
    """Levels that were run."""
    out_of_time: bool = False

    @property
    def last(self) -> Isolated | Level | None:
        """The last result."""
        return self.results[-1] if self.results else self.isolated

    @property
    def verdict(self) -> Outcome:
        """Validated if every level was clean."""
        for step in (self.isolated, *self.results):
            if step is not None and step.verdict != "clean":
                return step.verdict
        done = tuple(level.concurrency for level in self.results)
        return "validated" if done == self.settings.levels else "undecided"

    @property
    def exit_status(self) -> int:
        """Exit status of `cachelab validate`: 0 validated, 4 failed, 3 undecided or void."""
        return {"validated": 0, "failed": 4}.get(self.verdict, 3)

    @property
    def name(self) -> str:
        """The setting in words."""
        one = self.settings
        names = " + ".join(one.treatments) or "no treatment"
        return f"shortfin {one.release}, prefix sharing {one.prefix_sharing}, {names}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with verdicts and bounds."""
        plain = {**self.settings.as_dict(), "needed": self.settings.needed}
        plain |= {"verdict": self.verdict, "out_of_time": self.out_of_time}
        plain["isolated"] = None
        if self.isolated is not None:
            plain["isolated"] = {**asdict(self.isolated), "verdict": self.isolated.verdict}
        plain["results"] = [
            {**asdict(one), "verdict": one.verdict, "upper": one.upper, "failed": one.failed}
            for one in self.results
        ]
        return plain
