"""A ladder climbed on real engines: each rung a sanitized sweep, until one is not clean."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.core.errors import CachelabError, check_writable, shown
from analysis.core.files import write_atomically
from analysis.core.paths import place_of
from analysis.runs.schema import FAULT
from analysis.runs.store import differences, load_run
from analysis.sanitizer.rules import RULES
from analysis.shortfin.config import LONGEST_TIMEOUT_S
from analysis.shortfin.releases import row_of
from analysis.stats.rates import least_rate
from analysis.studies.validation.evidence import Evidence, Tolerated, read_evidence, rung_of
from analysis.studies.validation.isolated import examine
from analysis.studies.validation.result import LEVELS, Isolated, Ladder, LadderError, Rung
from analysis.sweep.estimate import Estimate
from analysis.sweep.plan import Plan
from analysis.sweep.prepare import check_lengths
from analysis.sweep.runner import run_sweep
from analysis.workloads.named import LONGEST_ANSWER, WORKLOADS, in_turn

EVERY: tuple[str, ...] = tuple(WORKLOADS)[::-1]
"""What the rungs ask, one workload an engine, in turn: all, the most exacting first."""
_LOWEST_ONLY = ("evict_after_lookup",)
"""What is made for two clients, and takes long with more: asked on the lowest rung."""

OnStep = Callable[[Isolated | Rung], None]
"""Called with each rung when it has ended."""

_PER_TRIAL = 32
"""Requests of a trial: enough for pages to be used again, few enough for several fresh engines."""
_FEWEST_ENGINES = 6
"""Fresh engines of a rung at least: requests of one engine are not independent, engines are."""
_MOST_ROUNDS, _LEAST_ROUNDS = 8, 2
"""Requests of a client: two at once may be slow, and a second one finds what a first one left."""
_RESUBMIT_S, _FOREVER_S, _TIMEOUT_S = 0.05, 1e6, 60.0
_MOST_NEEDED = 100_000
"""Requests of a rung at most: more take days."""
_PATIENCE = 4
"""Times what the pace of a free machine lets expect, before a trial or a request is given up."""
_WAITING, _IDLE_JOBS = 10, 8
"""How much longer a token takes in a batch with room where engines wait; how many run at once then.
"""
_SETTINGS, _ISOLATED, _RESULT = "ladder.json", "isolated.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is validated, and how sure it must be.

    `rate` is the failure rate that must have shown with `confidence`. `tolerate` gives, for rule
    and cause of findings that are not to fail a rung, the reason. `isolated_s` is the time for the
    cache's operations by themselves (0: they are left out). Raises LadderError for what makes no
    sense; engines' settings are checked when the plans are made.
    """

    release: str
    prefix_sharing: str = "none"
    treatments: tuple[str, ...] = ()
    confidence: float = 0.95
    rate: float = 0.01
    levels: tuple[int, ...] = LEVELS
    pages: int = 256
    workload: str | None = None
    """One, or several as `mixed+multi_turn`; None: every one that can be made."""
    max_new_tokens: int = 15
    """So many that every answer enters a new page of 16 tokens sooner or later."""
    seed: int = 0
    request_timeout_s: float | None = None
    """None: a minute, or longer where the longest answer takes long."""
    isolated_s: float = 120.0
    per_trial: int = _PER_TRIAL
    """Requests that a fresh engine is asked, but for at least 2 and at most 8 of each client."""
    tolerate: Tolerated = field(default_factory=dict)

    def __post_init__(self) -> None:
        row_of(self.release)
        for name in self.treatments:
            if name.startswith(FAULT):
                raise LadderError(
                    f"{name} plants a fault, so there is nothing to validate: name treatments."
                )
        if not 0 <= self.isolated_s <= LONGEST_TIMEOUT_S:
            raise LadderError(
                f"The isolated operations take from 0 to {LONGEST_TIMEOUT_S:.0f} seconds, not"
                f" {self.isolated_s}."
            )
        rules = sorted(rule.name for rule in RULES)
        for key, reason in self.tolerate.items():
            if key[0] not in rules:
                raise LadderError(
                    f"There is no rule {shown(key[0])} to tolerate: there are {', '.join(rules)}."
                )
            if not reason.strip():
                raise LadderError(f"Say why {key[0]} ({key[1]}) is to be tolerated.")
        needed = self.ladder().needed
        if needed > _MOST_NEEDED:
            least = least_rate(_MOST_NEEDED, self.confidence)
            raise LadderError(
                f"A failure rate of {self.rate:g} takes {needed:.3g} requests without a failure on"
                f" each rung to be ruled out with confidence {self.confidence:g}, and up to"
                f" {_MOST_NEEDED:,} can be asked in a day or so: choose a `--rate` from"
                f" {least:.2g} on."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, by which a ladder is recognised."""
        tolerate = [[*key, reason] for key, reason in sorted(self.tolerate.items())]
        plain: dict[str, Any] = json.loads(json.dumps({**asdict(self), "tolerate": tolerate}))
        return plain

    def place(self, path: str | Path) -> Path:
        """Return the place of its own for this ladder: `path` with a digest of the settings."""
        # An examination that had too little time may be given more.
        return place_of(Path(path), {**self.as_dict(), "isolated_s": None})

    def ladder(self) -> Ladder:
        """Return the ladder before it is climbed."""
        return Ladder(
            release=self.release,
            prefix_sharing=self.prefix_sharing,
            treatments=self.treatments,
            confidence=self.confidence,
            rate=self.rate,
            levels=self.levels,
            workload=self.asked,
        )

    @property
    def asked(self) -> str:
        """The workload, or all of them with + between."""
        return self.workload or "+".join(EVERY)

    def asked_at(self, level: int) -> tuple[str, ...]:
        """Return the workloads of one rung."""
        names = in_turn(self.asked)
        if self.workload is not None or level == self.levels[0]:
            return names
        return tuple(name for name in names if name not in _LOWEST_ONLY)

    def plan(self, level: int) -> Plan:
        """Return the sweep of one rung: as many fresh engines as it takes, and a control.

        Each workload is asked of one engine at least.

        Raises PlanError or EngineError for settings with which no engine can be started.
        """
        rounds = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, self.per_trial // level))
        names = self.asked_at(level)
        pace = row_of(self.release).pace
        longest_s = pace.first_token_s + pace.further_token_s * max(
            self.max_new_tokens, LONGEST_ANSWER
        )
        timeout_s = self.request_timeout_s
        if timeout_s is None:
            timeout_s = max(_TIMEOUT_S, _PATIENCE * longest_s)
        plan = Plan(
            releases=(self.release,),
            prefix_sharing=(self.prefix_sharing,),
            pages=(self.pages,),
            concurrency=(level,),
            workload="+".join(names),
            repeats=max(_FEWEST_ENGINES, -(-self.ladder().needed // (level * rounds)), len(names)),
            rounds=rounds,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            request_timeout_s=timeout_s,
            treatments=(self.treatments,),
            sanitize=True,
            resubmit_s=_RESUBMIT_S,
        )
        # The pace is that of a machine that is free; the patience is for one that is not.
        expected = Estimate(replace(plan, trial_timeout_s=_FOREVER_S)).trial_s(plan.trials()[-1])
        most = max(expected, rounds * longest_s)
        patience = max(plan.trial_timeout_s, _PATIENCE * most, 2 * timeout_s)
        return replace(plan, trial_timeout_s=patience)


def validate(
    settings: Settings,
    out: str | Path,
    *,
    jobs: int | None = None,
    budget_s: float = math.inf,
    on_step: OnStep | None = None,
    progress: bool = False,
) -> Ladder:
    """Climb a ladder: the isolated operations, then ever more concurrent requests.

    A rung is left upwards only if it was clean: no accepted request failed, no rule was broken, no
    page was lost, the alarm sounded where a fault was planted, and so many requests were accepted
    that `settings.rate` would have shown. The first that is not ends the ladder, and what failed
    there is explained. `jobs` engines run at a time; None means one a core, and more where the
    engine spends its time waiting. After `budget_s` seconds the ladder ends
    undecided where it is; called again with the same settings and `out` it goes on there.

    `out` holds `ladder.json` (the settings), `isolated.json`, a run for each rung (`rung-02`, ...)
    and `result.json`. Raises LadderError, and what `run_sweep` does.
    """
    if not budget_s >= 0:
        raise LadderError(f"`--time-budget` must be 0 seconds or more, not {budget_s}.")
    plans = {level: settings.plan(level) for level in settings.levels}
    check_lengths(plans[max(plans)])
    out, ends = Path(out), time.monotonic() + budget_s
    _claim(out, settings)
    ladder = settings.ladder()
    if settings.isolated_s:
        ladder = replace(ladder, isolated=_isolated(settings, out, ends))
        _tell(on_step, ladder.isolated)
    for level, plan in plans.items():
        if ladder.last is not None and ladder.last.verdict != "clean":
            break
        if time.monotonic() >= ends:
            ladder = replace(ladder, out_of_time=True)
            break
        rung = _climb(settings, level, plan, out, jobs or _jobs(plan, level), ends, progress)
        ladder = ladder.with_rung(rung)
        if rung.verdict == "undecided" and time.monotonic() >= ends:
            ladder = replace(ladder, out_of_time=True)
        _tell(on_step, rung)
    write_atomically(out / _RESULT, json.dumps(ladder.as_dict(), indent=2) + "\n")
    return ladder


def _climb(
    settings: Settings,
    level: int,
    plan: Plan,
    out: Path,
    jobs: int,
    ends: float,
    progress: bool,
) -> Rung:
    name = f"rung-{level:02d}"
    path = out / name
    known: dict[str, Evidence] = {}

    def look(*_: Any) -> None:
        for item in read_evidence(path, settings.tolerate, known):
            known[item.trial_id] = item

    def stop() -> bool:
        return time.monotonic() >= ends or any(item.broken for item in known.values())

    look()
    run_sweep(plan, path, jobs=jobs, on_trial=look, stop=stop, progress=progress)
    rung = rung_of(
        level,
        known.values(),
        needed=settings.ladder().needed,
        confidence=settings.confidence,
        rate=settings.rate,
        tolerated=settings.tolerate,
        run=name,
    )
    if rung.verdict == "failed":
        return replace(rung, explanation=_explain(path, rung, plan))
    if left := [name for name in plan.workloads if name not in _asked(plan, known.values())]:
        missing = f"Its time was up before it was asked {', '.join(left)}."
        return replace(rung, unchecked=(*rung.unchecked, missing))
    return rung


def _asked(plan: Plan, evidence: Iterable[Evidence]) -> set[str]:
    """Return the workloads that were asked."""
    done = {item.trial_id for item in evidence if not item.control}
    return {plan.workload_of(trial.repeat) for trial in plan.trials() if trial.trial_id in done}


def _jobs(plan: Plan, level: int) -> int:
    """Return how many engines fill the cores without keeping each other from their work."""
    pace = row_of(plan.releases[0]).pace
    waits = (
        level % max(plan.batch_sizes)
        and pace.further_token_s > _WAITING * pace.full_further_token_s
    )
    return _IDLE_JOBS if waits else os.cpu_count() or 1


def _explain(path: Path, rung: Rung, plan: Plan) -> str:
    """Return the story of the rung's first failing request; of its findings if there is none."""
    asked = {trial.trial_id: plan.workload_of(trial.repeat) for trial in plan.trials()}
    told = "\n\n".join(f"{found.name}: {found.message}" for found in rung.findings[:3])
    if rung.failing is None or not rung.failing[1]:
        return told or "\n".join(rung.endings[:1])
    trial_id, request_id = rung.failing
    from analysis.diagnosis import explain

    try:
        told_by = explain(load_run(path), request_id, trial_id=trial_id)
        where = f"In {trial_id}, asked {asked[trial_id]}:"
        return " ".join([where, told_by.summary, *told_by.diagnosis])
    except CachelabError as error:
        return f"{request_id} of {trial_id} cannot be explained: {error} {told}".strip()


def _isolated(settings: Settings, out: Path, ends: float) -> Isolated:
    """Examine the cache's operations, or return what is on disk of that."""
    file = out / _ISOLATED
    if file.is_file():
        kept = json.loads(file.read_text())
        return Isolated(**{**kept, "failures": tuple(kept["failures"])})
    budget = min(settings.isolated_s, max(1.0, ends - time.monotonic()))
    isolated = examine(
        settings.release,
        settings.prefix_sharing,
        settings.treatments,
        budget,
        out / "isolated.log",
    )
    if isolated.verdict != "undecided":
        write_atomically(file, json.dumps(asdict(isolated), indent=2) + "\n")
    return isolated


def _claim(out: Path, settings: Settings) -> None:
    """Take a directory for this ladder; LadderError if it is another's."""
    plain = settings.as_dict()
    check_writable(out)
    file = out / _SETTINGS
    if not file.is_file():
        if any(out.iterdir()):
            raise LadderError(f"{out} holds something else: choose a new or empty directory.")
        write_atomically(file, json.dumps(plain, indent=2) + "\n")
        return
    stored = json.loads(file.read_text())
    # An examination that had too little time may be given more.
    if different := differences({**stored, "isolated_s": settings.isolated_s}, plain):
        raise LadderError(f"{out} is another ladder ({different}): choose another place.")


def _tell(on_step: OnStep | None, step: Isolated | Rung | None) -> None:
    if on_step is not None and step is not None:
        on_step(step)
