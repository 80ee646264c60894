"""Runs candidates on fresh, unmodified, sanitized engines, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from analysis.core import children
from analysis.core.errors import EngineError
from analysis.core.jobs import read_lines
from analysis.model.oracle import Oracle
from analysis.recording.stream import read_stream
from analysis.reproduction.candidate import Candidate
from analysis.reproduction.symptom import Symptom, has_frozen
from analysis.sanitizer.recorded import check_tables
from analysis.shortfin.environments import python_of
from analysis.shortfin.script import FROZEN
from analysis.sweep.grid import Trial
from analysis.sweep.process import RECORDS, TrialProcess, read_facts, trial_servers
from analysis.sweep.rows import Ended, request_rows
from analysis.sweep.trial import specification
from analysis.workloads.workload import Answers, Request, Workload

_TICK_S = 0.02
_LOOK_S = 0.5
"""Seconds between two looks at the requests that have ended."""
_SETTLE_S = 45.0
"""Seconds for a recorded engine to finish given up requests, and to be asked once more."""


class OutOfTimeError(Exception):
    """The time for a search is used up."""


@dataclass(frozen=True)
class Attempt:
    """One engine with a candidate."""

    rows: Sequence[Mapping[str, Any]]
    """Rows of the table `requests`."""
    findings: Sequence[Mapping[str, Any]]
    failed: str | None
    """The first request that failed in the same way."""

    @property
    def outcomes(self) -> list[str]:
        """The outcomes of the requests."""
        return [str(row["outcome"]) for row in self.rows]


@dataclass
class References:
    """The reference decoder's answers, asked for once."""

    oracle: Oracle
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The longest known answer to each prompt."""

    def of(self, requests: Iterable[Request]) -> dict[tuple[str, int], tuple[int, ...]]:
        """Return the tokens for (prompt, number of new tokens) of each request."""
        wanted = list(requests)
        lacking = [r for r in wanted if len(self.known.get(r.prompt, ())) < r.max_new_tokens]
        if lacking:
            for (prompt, _), tokens in self.oracle.generate(lacking).items():
                self.known[prompt] = max(self.known.get(prompt, ()), tokens, key=len)
        return {
            (r.prompt, r.max_new_tokens): self.known[r.prompt][: r.max_new_tokens] for r in wanted
        }


class Engines:
    """Starts engines of one release with one configuration; a context manager."""

    def __init__(
        self, release: str, config: Mapping[str, Any], references: References, jobs: int
    ) -> None:
        self.release, self.config, self.references = release, dict(config), references
        self.jobs = jobs
        self.started = 0
        """Number of engines so far."""
        self._python = python_of(release)
        self._open = ExitStack()

    def __enter__(self) -> Engines:
        self._scratch = self._open.enter_context(children.scratch("cachelab-reproduce"))
        self._servers = self._open.enter_context(trial_servers())
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def attempts(
        self, candidate: Candidate, symptom: Symptom, count: int, until: float | None = None
    ) -> Iterator[Attempt]:
        """Yield `count` engines with a candidate as they end; fewer if the caller stops.

        An engine that cannot start with so few pages counts as one without failed requests. Raises
        OutOfTimeError at `until` on the monotonic clock, and MachineError.
        """
        answers = self.references.of(candidate.requests)
        running: list[_Running] = []
        left = count
        try:
            while left or running:
                while left and len(running) < self.jobs:
                    running.append(self._start(candidate, symptom, answers))
                    left -= 1
                for one in list(running):
                    if (attempt := one.attempt()) is not None:
                        running.remove(one)
                        yield attempt
                if until is not None and time.monotonic() > until:
                    raise OutOfTimeError
                time.sleep(_TICK_S)
        finally:
            for one in running:
                one.process.kill()

    def _start(self, candidate: Candidate, symptom: Symptom, answers: Answers) -> _Running:
        self.started += 1
        config = {**self.config, "page_count": candidate.page_count}
        spec = specification(
            config, candidate.workload, candidate.concurrency, candidate.answer_s(self.release),
            observe="events", sanitize=True, trial_id="reproduce",
        )  # fmt: skip
        # A process that stands still needs all of its time.
        settle_s = 0.0 if symptom.outcome == FROZEN else _SETTLE_S
        timeout_s = candidate.deadline_s(self.release) + settle_s
        directory = self._scratch / str(self.started)
        process = TrialProcess(self._servers, self._python, spec, directory, timeout_s)
        trial = Trial(
            self.release, self.config["prefix_sharing"], candidate.page_count,
            candidate.concurrency, 0,
        )  # fmt: skip
        return _Running(process, trial, candidate, symptom, answers)


@dataclass
class _Running:
    """An engine under way."""

    process: TrialProcess
    trial: Trial
    candidate: Candidate
    symptom: Symptom
    answers: Answers
    looked_s: float = 0.0

    def attempt(self) -> Attempt | None:
        """Return the attempt if the engine has ended, or if a request has failed already."""
        if not self.process.poll():
            return self._failed_early()
        try:
            ended = self.process.ended()
        except EngineError:
            return Attempt([], [], None)
        return self._judged(self.candidate.workload, ended)

    def _failed_early(self) -> Attempt | None:
        """Return the attempt, and end the engine, if a request has failed in the same way.

        What its other requests would still wait for does not matter.
        """
        if self.process.elapsed_s - self.looked_s < _LOOK_S:
            return None
        self.looked_s = self.process.elapsed_s
        records = read_lines(self.process.directory / RECORDS)
        over = {row["request_id"] for row in records}
        own = self.candidate.requests
        whole = Workload("reproduce", tuple(r for r in own if r.id in over))
        rows = request_rows(self.trial, whole, self.answers, Ended(records, 0.0))
        if self.symptom.outcome not in {row["outcome"] for row in rows}:
            return None
        facts = read_facts(self.process.directory)
        attempt = self._judged(whole, Ended(records, 0.0, facts=facts))
        if attempt.failed is None:
            return None
        self.process.kill()
        return attempt

    def _judged(self, workload: Workload, ended: Ended) -> Attempt:
        rows = request_rows(self.trial, workload, self.answers, ended)
        recorded = read_stream(self.process.directory, ended.ended_ns)
        checked = check_tables(recorded, ended.facts.get("page_tokens")) if recorded else None
        findings = [] if checked is None else checked.rows("reproduce")
        return Attempt(rows, findings, self.symptom.shown_by(rows, findings, has_frozen(ended)))


def alone(candidate: Candidate, request_id: str) -> Candidate:
    """Return a candidate with only one request, sent at once."""
    chosen = candidate.among({request_id})
    return chosen.of(replace(request, arrival_s=0.0) for request in chosen.requests)
