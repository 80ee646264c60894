"""A ladder as it was climbed: plain data, verdicts and frames, without any engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from analysis.core.errors import CachelabError
from analysis.stats.exact import upper_bound
from analysis.stats.rates import requests_to_see

LEVELS = (2, 4, 8, 16, 32)
Verdict = Literal["clean", "failed", "undecided", "void"]
Outcome = Literal["validated", "failed", "undecided", "void"]
EXIT_STATUS: Mapping[str, int] = {"validated": 0, "failed": 4, "undecided": 3, "void": 3}
"""What `cachelab validate` ends with."""


class LadderError(CachelabError):
    """A ladder that cannot be climbed as asked."""


@dataclass(frozen=True)
class Found:
    """What the sanitizer found of one rule and cause in a rung."""

    rule: str
    cause: str
    severity: str
    requests: int
    trials: int
    message: str
    """The first one's sentence."""
    reason: str = ""
    """Why it is tolerated, "" if it is not."""

    @property
    def name(self) -> str:
        """Rule and cause."""
        return f"{self.rule} ({self.cause})"


@dataclass(frozen=True)
class Rung:
    """So many concurrent requests on fresh engines; what they came to."""

    level: int
    needed: int
    """Accepted requests that it takes."""
    confidence: float = 0.95
    rate: float = 0.01
    """The failure rate that would have shown with this confidence, had none failed."""
    accepted: int = 0
    """Requests that the engine took."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Of these, how many ended how, other than right."""
    rejected: int = 0
    """Requests that were never taken; they count for nothing."""
    refusals: int = 0
    """How often requests were refused and sent again."""
    trials: int = 0
    """Fresh engines."""
    failed_trials: int = 0
    """Of these, how many had a failure, a finding or a leak, or did not end well."""
    workloads: Mapping[str, int] = field(default_factory=dict)
    """How many of these engines were asked which workload."""
    at_once: int | None = None
    """Requests that an engine worked on at once, at most; None if unknown."""
    endings: tuple[str, ...] = ()
    """How engines ended that did not end well."""
    findings: tuple[Found, ...] = ()
    tolerated: tuple[Found, ...] = ()
    leaked: int = 0
    """Pages neither free nor cached with nobody served, over all engines."""
    controls: int = 0
    """Engines in which a planted fault was injected."""
    alarms: int = 0
    """Of these, in how many it was found for what it is."""
    planted: tuple[str, ...] = ()
    """The faults, also those that were never injected."""
    unchecked: tuple[str, ...] = ()
    """What could not be watched, in sentences."""
    peak_rss_bytes: int | None = None
    """Largest resident memory of an engine's process."""
    pages_in_use: int | None = None
    """Most pages out of the pool at once."""
    page_count: int | None = None
    seconds: float = 0.0
    """Time of all its engines together."""
    run: str = ""
    """Its directory below the ladder's."""
    failing: tuple[str, str] | None = None
    """Trial and request that its failure is explained by; the request is "" if none is known."""
    explanation: str = ""

    @property
    def failed(self) -> int:
        """Accepted requests that did not end right."""
        return sum(self.failures.values())

    @property
    def verdict(self) -> Verdict:
        """What it came to; a failure needs no control to be believed, silence does."""
        if self.failed or self.endings or self.findings or self.leaked:
            return "failed"
        if self.alarms < self.controls:
            return "void"
        if not self.controls or self.unchecked or self.accepted < self.needed:
            return "undecided"
        return "clean"

    @property
    def upper(self) -> float:
        """Upper bound of the failure rate at the stated confidence, one-sided; 1 if nothing ran."""
        return upper_bound(self.failed, self.accepted, self.confidence)

    @property
    def upper_of_engines(self) -> float:
        """The same of engines with anything wrong, which are independent of each other.

        Where they were asked several workloads, of the mix of these: with no failure it bounds the
        mean of the engines' rates, for none does better with unequal rates than with equal ones.
        """
        return upper_bound(self.failed_trials, self.trials, self.confidence)

    @property
    def ran(self) -> int:
        """Requests that ran at once: fewer than the level where the engine refused the others."""
        refused = self.refusals or self.rejected
        return min(self.level, self.at_once) if refused and self.at_once else self.level

    @property
    def name(self) -> str:
        """What ran, and what was offered if that was more."""
        offered = f" (offered {self.level})" if self.ran < self.level else ""
        return f"{self.ran} at once{offered}"


@dataclass(frozen=True)
class Isolated:
    """The cache's operations by themselves, under every interleaving."""

    ok: bool | None
    """None if it did not come to an end."""
    interleavings: int = 0
    complete: bool = False
    """Whether these were all."""
    failures: tuple[str, ...] = ()
    """What can happen on this release's threads, in sentences."""
    elsewhere: int = 0
    """Failures that can not."""
    problem: str = ""
    """Why nothing is known, if nothing is."""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """What it came to; not to have seen a failure counts only if all was looked at."""
        if self.ok is None:
            return "undecided"
        if self.failures:
            return "failed"
        return "clean" if self.complete else "undecided"


@dataclass(frozen=True)
class Ladder:
    """One release with one set of treatments, from the isolated operations upwards."""

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    confidence: float = 0.95
    rate: float = 0.01
    levels: tuple[int, ...] = LEVELS
    workload: str = "mixed"
    isolated: Isolated | None = None
    """None where it was not asked for."""
    rungs: tuple[Rung, ...] = ()
    out_of_time: bool = False
    """Whether its time budget ended it."""

    def __post_init__(self) -> None:
        if not (0 < self.confidence < 1 and 0 < self.rate < 1):
            raise LadderError(
                "`--confidence` and `--rate` must lie between 0 and 1, not"
                f" {self.confidence} and {self.rate}."
            )
        levels = self.levels
        if not levels or min(levels) < 1 or list(levels) != sorted(set(levels)):
            raise LadderError(
                f"The rungs must be ascending numbers of requests from 1, not {list(levels)}."
            )

    @property
    def needed(self) -> int:
        """Accepted requests without a failure that each rung takes."""
        return requests_to_see(self.rate, self.confidence)

    @property
    def last(self) -> Isolated | Rung | None:
        """The rung that it came to."""
        return self.rungs[-1] if self.rungs else self.isolated

    @property
    def verdict(self) -> Outcome:
        """Validated if every rung was clean."""
        for step in (self.isolated, *self.rungs):
            if step is not None and step.verdict != "clean":
                return step.verdict
        done = tuple(rung.level for rung in self.rungs)
        return "validated" if done == self.levels else "undecided"

    @property
    def exit_status(self) -> int:
        """What `cachelab validate` ends with: 0 validated, 4 failed, 3 undecided or void."""
        return EXIT_STATUS[self.verdict]

    @property
    def name(self) -> str:
        """Its setting in words."""
        names = " + ".join(self.treatments) or "no treatment"
        return f"shortfin {self.release}, prefix sharing {self.prefix_sharing}, {names}"

    def with_rung(self, rung: Rung) -> Ladder:
        """Return the ladder with one rung more."""
        return replace(self, rungs=(*self.rungs, rung))

    def frame(self) -> pd.DataFrame:
        """Return a row a rung that was begun or is to come: level 0 stands for the isolated ones.

        Columns: level, verdict ("not begun" for those to come), needed, accepted, failed, rejected,
        refusals, at_once, upper (of the failure rate), findings and leaked (counts), trials,
        peak_rss_bytes, pages_in_use, page_count, seconds.
        """
        rows: list[dict[str, Any]] = []
        if self.isolated is not None:
            rows.append({"level": 0, "verdict": self.isolated.verdict,
                         "needed": None, "accepted": None, "failed": len(self.isolated.failures),
                         "seconds": self.isolated.seconds})  # fmt: skip
        own = {rung.level: rung for rung in self.rungs}
        for level in self.levels:
            rung = own.get(level)
            if rung is None:
                rows.append({"level": level, "verdict": "not begun", "needed": self.needed})
                continue
            row = {name: getattr(rung, name) for name in _COLUMNS if hasattr(rung, name)}
            rows.append({**row, "findings": len(rung.findings)})
        frame = pd.DataFrame(rows, columns=list(_COLUMNS))
        whole = [name for name in _COLUMNS if name not in ("verdict", "upper", "seconds")]
        return frame.astype(dict.fromkeys(whole, "Int64"))

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for programs: with verdicts and bounds."""
        plain = asdict(self)
        plain["verdict"], plain["needed"] = self.verdict, self.needed
        if self.isolated is not None:
            plain["isolated"]["verdict"] = self.isolated.verdict
        for row, rung in zip(plain["rungs"], self.rungs, strict=True):
            row |= {"verdict": rung.verdict, "upper": rung.upper, "failed": rung.failed}
        return plain


_COLUMNS = (
    "level", "verdict", "needed", "accepted", "failed", "rejected", "refusals", "at_once",
    "upper", "findings", "leaked", "trials", "peak_rss_bytes", "pages_in_use", "page_count",
    "seconds",
)  # fmt: skip


def overview(ladders: Sequence[Ladder]) -> pd.DataFrame:
    """Return a row a ladder: release, prefix_sharing, treatments, verdict, reached, stopped_at.

    `reached` is the highest level that was clean, `stopped_at` the one that was not; level 0 stands
    for the isolated operations, and either is missing where there is none.
    """
    rows = []
    for ladder in ladders:
        frame = ladder.frame()
        begun = frame[frame["verdict"] != "not begun"]
        clean = begun.loc[begun["verdict"] == "clean", "level"]
        other = begun.loc[begun["verdict"] != "clean", "level"]
        rows.append(
            {
                "release": ladder.release,
                "prefix_sharing": ladder.prefix_sharing,
                "treatments": ladder.treatments,
                "verdict": ladder.verdict,
                "reached": clean.max() if len(clean) else pd.NA,
                "stopped_at": other.iloc[0] if len(other) else pd.NA,
            }
        )
    columns = ["release", "prefix_sharing", "treatments", "verdict", "reached", "stopped_at"]
    return pd.DataFrame(rows, columns=columns).astype({"reached": "Int64", "stopped_at": "Int64"})
