"""`reproduce`: from a recorded request to a measured, minimal failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.core.errors import RunError
from analysis.core.minimise import smallest
from analysis.core.wording import counted
from analysis.diagnosis.request_trace import RequestTrace, trace_of
from analysis.model.artifacts import load_model
from analysis.model.tokenizer import ModelTokenizer
from analysis.reproduction.candidate import Candidate, batch_peers, recorded_candidate
from analysis.reproduction.engines import Attempt, Engines, References, alone
from analysis.reproduction.search import OnProgress, Search, Step
from analysis.reproduction.symptom import Symptom, symptom_of
from analysis.runs.store import Run
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.oracle import oracle_of
from analysis.stats.clustered import Rate, rate
from analysis.sweep.rerun_solo import engine_config_of, plan_of

BUDGET_S = 180.0
_RELIABLE = 0.5
"""Share of engines on which the result should fail, even if a smaller workload fails sometimes."""
_CONFIRMED_BY = 3
"""Multiple of the tries of a candidate that the recorded workload gets."""


@dataclass(frozen=True)
class Compared:
    """Engines with a changed workload, to rule something out."""

    engines: int
    failed: int
    """Engines that failed in the same way."""
    right: int
    """Engines that answered every request right."""

    @classmethod
    def of(cls, attempts: list[Attempt]) -> Compared:
        """Count engines."""
        return cls(
            len(attempts),
            sum(one.failed is not None for one in attempts),
            sum(set(one.outcomes) == {"ok"} and not one.failed for one in attempts),
        )


@dataclass(frozen=True)
class Reproduction:
    """The smallest workload that was found to fail like a recorded request."""

    trace: RequestTrace
    """The recorded request."""
    symptom: Symptom
    start: Candidate
    """The recorded workload."""
    best: Candidate
    failed: str
    """The request of the smallest workload that failed."""
    steps: tuple[Step, ...]
    not_tried: tuple[str, ...]
    interrupted: bool
    candidates: int
    """Number of workloads tested."""
    engines: int
    """Number of engines started in all."""
    seconds: float
    """Duration of the search."""
    config: dict[str, Any]
    """Settings of the engine, for `EngineConfig.from_json`."""
    right: dict[str, tuple[int, ...]]
    """The reference decoder's answer to each request, by id."""
    replay: Rate | None
    """Share of fresh engines on which it fails in the same way; None if not measured."""
    rarer: tuple[Candidate, Rate] | None
    """A smaller workload that fails on fewer than half of the engines; None if there is none."""
    alone: Compared | None
    """The failed request without the others; None if there are none, or if not measured."""
    reversed: Compared | None
    """The requests in the reverse order; None if there is only one, or if not measured."""

    @property
    def release(self) -> str:
        """The release of shortfin."""
        return str(self.trace.trial["release"])


def reproduce(
    run: Run,
    request_id: str,
    trial_id: str | None = None,
    *,
    finding: str | None = None,
    budget_s: float = BUDGET_S,
    tries: int = 2,
    replays: int = 10,
    jobs: int = 1,
    on_progress: OnProgress = lambda line: None,
) -> Reproduction:
    """Find the smallest workload that fails like a request, and measure how often it does.

    A candidate fails if one of `tries` fresh engines without treatments has a request with the same
    outcome and, where the run was sanitized, the same kind of finding (`finding`: another one than
    the request's first). The search ends after `budget_s` seconds, or at Ctrl-C; the best candidate
    so far is then measured on `replays` engines, `jobs` at a time.

    Raises RunError if there is no such request, it did not fail, or it does not fail again;
    ReleaseError, ModelError or MachineError.
    """
    trace = trace_of(run, request_id, trial_id)
    symptom = symptom_of(trace, finding)
    trial, plan, start = trace.trial, plan_of(run), recorded_candidate(trace)
    release = str(trial["release"])
    config = {**engine_config_of(run, trial), "serialise_invocations": False}
    oracle = oracle_of(
        release, model=plan["model"], batch_sizes=trial["batch_sizes"], device=plan["device"],
        hip_target=plan["hip_target"],
        from_positions=EngineConfig.from_json(config).prefills_from_positions,
    )  # fmt: skip
    tokenizer = ModelTokenizer(load_model(Path(plan["model"]) if plan["model"] else None))
    references = References(oracle)
    began = time.monotonic()
    with Engines(release, config, references, jobs) as engines:
        on_progress(f"as recorded: {start}")
        symptom, failed = _confirmed(engines, start, symptom, _CONFIRMED_BY * tries)
        search = Search(
            engines, symptom, start, failed, encode=tokenizer.encode_answer,
            decode=tokenizer.decode, budget_s=budget_s - (time.monotonic() - began), tries=tries,
            on_progress=on_progress,
        )  # fmt: skip
        peers = {request.id for request in start.requests} & batch_peers(trace)
        interrupted = _interrupted(lambda: search.run(peers))
        seconds, best = time.monotonic() - began, search.best
        on_progress(f"smallest: {best} (after {seconds:.0f} s, {engines.started} engines)")
        measured: dict[str, Any] = dict.fromkeys(("replay", "rarer", "alone", "reversed"))
        measures = _Measures(engines, symptom, search.history, replays, measured)
        interrupted = _interrupted(measures.run) or interrupted
        best = measures.best
    return Reproduction(
        trace=trace, symptom=symptom, start=start, best=best, failed=measures.failed,
        steps=tuple(search.steps), not_tried=tuple(search.not_tried), interrupted=interrupted,
        candidates=search.candidates, engines=engines.started, seconds=seconds,
        config={**config, "page_count": best.page_count},
        right={r.id: references.of([r])[r.prompt, r.max_new_tokens] for r in best.requests},
        **measured,
    )  # fmt: skip


def _interrupted(work: Callable[[], object]) -> bool:
    """Do something; return whether Ctrl-C ended it."""
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def _confirmed(
    engines: Engines, start: Candidate, symptom: Symptom, tries: int
) -> tuple[Symptom, str]:
    """Return the symptom and the request that failed again with the recorded workload.

    Without a finding, the symptom gets that of the first engine that fails. Raises RunError.
    """
    seen: dict[str, int] = {}
    for one in engines.attempts(start, symptom, tries):
        for outcome in one.outcomes:
            seen[outcome] = seen.get(outcome, 0) + 1
        if one.failed is not None:
            if symptom.finding is None:
                symptom = symptom.with_finding(one.findings, one.failed)
            return symptom, one.failed
    ended = ", ".join(f"{number} {outcome}" for outcome, number in seen.items())
    raise RunError(
        f"The recorded workload did not fail in the same way ({symptom.title}) on"
        f" {counted(tries, 'fresh engine')} without treatments; its requests ended as {ended}. Try"
        " again with more --tries, or choose another request."
    )


class _Measures:
    """Measures the result; `into` keeps what was measured before Ctrl-C."""

    def __init__(
        self,
        engines: Engines,
        symptom: Symptom,
        history: list[tuple[Candidate, str]],
        replays: int,
        into: dict[str, Any],
    ) -> None:
        self._engines, self._symptom, self._replays = engines, symptom, replays
        self._smaller = history[::-1]
        self._rates: dict[int, Rate] = {}
        self.into = into
        self.best, self.failed = self._smaller[0]

    def run(self) -> None:
        """Measure the replay probability, and what can be ruled out.

        If the failed request alone fails, too, it is the smallest workload. If that fails on fewer
        than half of the engines, a larger one that does is the result, where there is one.
        """
        if len(self.best.requests) > 1:
            own = alone(self.best, self.failed)
            if self._compared(own).failed:
                self._smaller.insert(0, (own, self.failed))
        if not self._is_reliable(0) and len(self._smaller) > 1:
            found = smallest(1, len(self._smaller) - 1, self._is_reliable)
            if self._is_reliable(found):
                self.into["rarer"] = self._smaller[0][0], self._rates[0]
                self._choose(found)
        if len(self.best.requests) > 1:
            self.into["alone"] = self._compared(alone(self.best, self.failed))
            self.into["reversed"] = self._compared(self.best.reversed())

    def _is_reliable(self, number: int) -> bool:
        """Return whether a candidate fails on half of the engines or more."""
        if number not in self._rates:
            candidate, _ = self._smaller[number]
            failed: list[int] = []
            for one in self._engines.attempts(candidate, self._symptom, self._replays):
                failed.append(int(one.failed is not None))
                self._rates[number] = rate(failed, [1] * len(failed))
                if number == 0:
                    self._choose(0)
        return self._rates[number].value >= _RELIABLE

    def _choose(self, number: int) -> None:
        self.best, self.failed = self._smaller[number]
        self.into["replay"] = self._rates[number]

    def _compared(self, candidate: Candidate) -> Compared:
        half = max(1, self._replays // 2)
        return Compared.of(list(self._engines.attempts(candidate, self._symptom, half)))
