"""Settings of a staged validation, and the sweep of each level."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.core.errors import CachelabError, shown
from analysis.core.paths import place_of
from analysis.runs.schema import FAULT
from analysis.sanitizer.rules import RULES
from analysis.shortfin.config import LONGEST_TIMEOUT_S
from analysis.shortfin.releases import row_of
from analysis.stats.bounds import least_rate, requests_to_see
from analysis.sweep.estimate import Estimate
from analysis.sweep.plan import Plan
from analysis.sweep.prepare import check_lengths
from analysis.workloads.named import LONGEST_ANSWER, WORKLOADS, in_turn
from analysis.workloads.workload import Request, Workload

LEVELS = (2, 4, 8, 16, 32)
_NEWER = ("forks", "bursts", "cancelled")
"""Workloads that the shipped validation of notebook 07 was made without."""
EVERY: tuple[str, ...] = tuple(name for name in WORKLOADS if name not in _NEWER)[::-1]
"""Workloads of the engines of a level, in turn: the most demanding first."""
LOWEST_ONLY = ("evict_after_lookup",)
"""Workloads for two clients, slow with more: for the lowest level only."""

_PER_TRIAL = 32
"""Requests of a trial: enough to reuse pages, few enough for several fresh engines."""
FEWEST_ENGINES = 6
"""Fresh engines of a level at least: engines are independent, requests of one engine are not."""
_MOST_ROUNDS, _LEAST_ROUNDS = 8, 2
"""Requests of a client: two at once may be slow, and the second can hit pages of the first."""
_RESUBMIT_S, _FOREVER_S, _TIMEOUT_S = 0.05, 1e6, 60.0
_MOST_NEEDED = 100_000
"""Requests of a level at most: more take days."""
_PATIENCE = 4
"""Timeout of a trial or a request, as a multiple of the time expected on an idle machine."""

Tolerated = Mapping[tuple[str, str], str]
"""Rule and cause of findings that do not fail a level, with the reason."""


class ValidationError(CachelabError):
    """A validation cannot be run as requested."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is validated, and with which confidence.

    Raises ValidationError for values out of range, ReleaseError for an unknown release. The
    engine's settings are checked when the plans are made.
    """

    release: str
    prefix_sharing: str = "none"
    treatments: tuple[str, ...] = ()
    confidence: float = 0.95
    rate: float = 0.01
    """Failure rate that must have shown with this confidence."""
    levels: tuple[int, ...] = LEVELS
    pages: int = 256
    workload: str | None = None
    """One, several as `mixed+multi_turn`, or a JSON Lines file; None: all that have a name."""
    max_new_tokens: int = 15
    """Enough for every answer to enter a new page of 16 tokens."""
    seed: int = 0
    request_timeout_s: float | None = None
    """None: a minute, or longer where the longest answer takes long."""
    isolated_s: float = 120.0
    """Time for the cache alone; 0 leaves it out."""
    per_trial: int = _PER_TRIAL
    """Requests of an engine, but at least 2 and at most 8 of each client."""
    tolerate: Tolerated = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = (4,)
    model: str | None = None

    def __post_init__(self) -> None:
        row_of(self.release)
        if not (0 < self.confidence < 1 and 0 < self.rate < 1):
            raise ValidationError(
                "`--confidence` and `--rate` must lie between 0 and 1, not"
                f" {self.confidence} and {self.rate}."
            )
        levels = self.levels
        if not levels or min(levels) < 1 or list(levels) != sorted(set(levels)):
            raise ValidationError(
                f"The levels must be ascending numbers of requests from 1, not {list(levels)}."
            )
        if faults := [name for name in self.treatments if name.startswith(FAULT)]:
            raise ValidationError(f"{faults[0]} injects a fault: name treatments only.")
        if not 0 <= self.isolated_s <= LONGEST_TIMEOUT_S:
            raise ValidationError(
                f"`--isolated` must be from 0 to {LONGEST_TIMEOUT_S:.0f} seconds, not"
                f" {self.isolated_s}."
            )
        rules = sorted(rule.name for rule in RULES)
        for (rule, cause), reason in self.tolerate.items():
            if rule not in rules:
                raise ValidationError(
                    f"There is no rule {shown(rule)} to tolerate: choose among {', '.join(rules)}."
                )
            if not reason.strip():
                raise ValidationError(f"Give the reason to tolerate {rule} ({cause}).")
        if self.needed > _MOST_NEEDED:
            raise ValidationError(
                f"To rule out a failure rate of {self.rate:g} with confidence {self.confidence:g},"
                f" each level needs {self.needed:.3g} requests without a failure; the limit is"
                f" {_MOST_NEEDED:,}, about a day. Choose a `--rate` of at least"
                f" {least_rate(_MOST_NEEDED, self.confidence):.2g}."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, which identify a validation."""
        tolerate = [[*key, reason] for key, reason in sorted(self.tolerate.items())]
        plain: dict[str, Any] = json.loads(json.dumps({**asdict(self), "tolerate": tolerate}))
        # Left out, so that validations from before these options can be continued.
        for name, default in (("batch_sizes", [4]), ("model", None)):
            if plain[name] == default:
                del plain[name]
        if self._requests:
            plain["workload_sha256"] = hashlib.sha256(Path(self.workloads).read_bytes()).hexdigest()
        return plain

    @property
    def _requests(self) -> tuple[Request, ...]:
        """The requests of a workload file; () for workloads with a name."""
        if self.workload is None or not os.path.isfile(self.workload):
            return ()
        return Workload.read(self.workload, max_new_tokens=self.max_new_tokens).requests

    def place(self, path: str | Path) -> Path:
        """Return the directory of this validation: `path` with a digest of the settings."""
        # A validation that ran out of time may go on with more time for the cache alone.
        return place_of(Path(path), {**self.as_dict(), "isolated_s": None})

    @property
    def needed(self) -> int:
        """Accepted requests without a failure that each level needs."""
        return requests_to_see(self.rate, self.confidence)

    @property
    def workloads(self) -> str:
        """The workload, or all of them with + between."""
        return self.workload or "+".join(EVERY)

    def workloads_at(self, concurrency: int) -> tuple[str, ...]:
        """Return the workloads of one level."""
        names = in_turn(self.workloads)
        if self.workload is not None or concurrency == self.levels[0]:
            return names
        return tuple(name for name in names if name not in LOWEST_ONLY)

    def plans(self) -> dict[int, Plan]:
        """Return the sweep of each level, checked as far as possible before an engine starts.

        Raises the CachelabError of the first value that is wrong.
        """
        plans = {level: self.plan(level) for level in self.levels}
        check_lengths(plans[max(plans)])
        return plans

    def plan(self, concurrency: int) -> Plan:
        """Return the sweep of one level: fresh engines for every workload, and a control.

        Raises PlanError or EngineError for settings with which no engine can be started.
        """
        rounds = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, self.per_trial // concurrency))
        names, lines = self.workloads_at(concurrency), self._requests
        longest = max(self.max_new_tokens, LONGEST_ANSWER)
        if lines:
            rounds = -(-len(lines) // concurrency)
            longest = max(request.max_new_tokens for request in lines)
        engines = -(-self.needed // (len(lines) or concurrency * rounds))
        pace = row_of(self.release).pace
        longest_s = pace.first_token_s + pace.further_token_s * longest
        timeout_s = self.request_timeout_s
        if timeout_s is None:
            timeout_s = max(_TIMEOUT_S, _PATIENCE * longest_s)
        plan = Plan(
            releases=(self.release,),
            prefix_sharing=(self.prefix_sharing,),
            pages=(self.pages,),
            concurrency=(concurrency,),
            workload="+".join(names),
            repeats=max(FEWEST_ENGINES, engines, len(names)),
            rounds=None if lines else rounds,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            request_timeout_s=timeout_s,
            treatments=(self.treatments,),
            sanitize=True,
            resubmit_s=_RESUBMIT_S,
            batch_sizes=self.batch_sizes,
            model=self.model,
        )
        expected = Estimate(replace(plan, trial_timeout_s=_FOREVER_S)).trial_s(plan.trials()[-1])
        most = max(expected, rounds * longest_s)
        return replace(
            plan, trial_timeout_s=max(plan.trial_timeout_s, _PATIENCE * most, 2 * timeout_s)
        )
