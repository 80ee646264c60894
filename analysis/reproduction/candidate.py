"""A candidate: a workload and a number of pages that may fail as a recorded request did."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from analysis.core.wording import counted, ranges
from analysis.diagnosis.request_trace import RequestTrace, value_of
from analysis.runs.store import Run
from analysis.shortfin.releases import row_of
from analysis.sweep.rerun_solo import plan_of
from analysis.workloads.workload import Request, Workload

_LEAST_ANSWER_S, _PATIENCE, _START_S = 5.0, 3.0, 15.0
"""Deadline of a request: this, or this multiple of its usual time if that is longer. An engine may
take its requests' deadlines, and this to start and to stop."""


@dataclass(frozen=True)
class Candidate:
    """Requests in the order of sending, to a fresh engine with this number of pages."""

    requests: tuple[Request, ...]
    concurrency: int
    page_count: int

    @property
    def workload(self) -> Workload:
        """The requests as a workload."""
        return Workload("reproduce", self.requests)

    def of(self, requests: Iterable[Request]) -> Candidate:
        """Return the same with other requests, and no more clients than those."""
        chosen = tuple(requests)
        return replace(self, requests=chosen, concurrency=min(self.concurrency, len(chosen)))

    def among(self, ids: Collection[str]) -> Candidate:
        """Return the same with only the requests of these ids."""
        return self.of(request for request in self.requests if request.id in ids)

    def answers(self, most: int, only: str | None = None) -> Candidate:
        """Return the same with answers of at most `most` tokens, of one request or of all."""
        return self.of(
            replace(r, max_new_tokens=min(r.max_new_tokens, most)) if only in (None, r.id) else r
            for r in self.requests
        )

    def prompts(self, texts: Mapping[str, str]) -> Candidate:
        """Return the same with other prompts, by id."""
        return self.of(replace(r, prompt=texts.get(r.id, r.prompt)) for r in self.requests)

    def at_once(self, ids: Collection[str]) -> Candidate:
        """Return the same with requests of these ids sent as early as their clients can."""
        return self.of(replace(r, arrival_s=0.0) if r.id in ids else r for r in self.requests)

    def reversed(self) -> Candidate:
        """Return the same with the requests in the reverse order."""
        return self.of(self.requests[::-1])

    def answer_s(self, release: str) -> float:
        """Return the longest wait for one answer, in seconds."""
        pace = row_of(release).pace
        longest = max(request.max_new_tokens for request in self.requests)
        usual_s = pace.first_token_s + pace.further_token_s * longest
        return max(_LEAST_ANSWER_S, _PATIENCE * usual_s)

    def deadline_s(self, release: str) -> float:
        """Return the longest time of an engine with all requests, in seconds."""
        waves = math.ceil(len(self.requests) / self.concurrency)
        latest = max(request.arrival_s for request in self.requests)
        return _START_S + latest + waves * self.answer_s(release)

    def __str__(self) -> str:
        tokens = ranges(request.max_new_tokens for request in self.requests)
        lengths = ranges(len(request.prompt) for request in self.requests)
        late = "" if not any(r.arrival_s for r in self.requests) else ", at recorded times"
        return (
            f"{counted(len(self.requests), 'request')}, {self.concurrency} at once{late}; prompts"
            f" of {lengths} characters, answers of {tokens} tokens;"
            f" {counted(self.page_count, 'page')}"
        )


def recorded_candidate(trace: RequestTrace) -> Candidate:
    """Return the workload of a request's trial, sent and cancelled at the recorded times.

    A client sends its next request when the previous one has ended, not before its recorded time.
    Expected texts are left out: answers are compared with the reference decoder's.
    """
    rows = trace.requests
    first = rows["submitted_s"].min()
    requests = tuple(
        Request(
            row["request_id"],
            row["prompt"],
            len(row["reference_tokens"] or ()) or int(plan_of(trace.run)["max_new_tokens"]),
            arrival_s=round(float((value_of(row["submitted_s"]) or first) - first), 4)
            if not math.isnan(first)
            else 0.0,
            family=value_of(row["family"]) or "",
            cancel_after_s=row["latency_s"] if row["outcome"] == "cancelled" else None,
        )
        for row in rows.to_dict("records")
    )
    trial = trace.trial
    concurrency = min(int(trial["concurrency"]), len(requests))
    return Candidate(requests, concurrency, int(trial["page_count"]))


def batch_peers(trace: RequestTrace) -> set[str]:
    """Return the ids of a request and of all that had a row in one of its invocations."""
    together = {trace.name}
    for ids in trace.invocations["request_ids"]:
        if trace.name in (ids or ()):
            together.update(ids)
    return together


def first_suspect(run: Run) -> tuple[str, str] | None:
    """Return request and trial of the first finding about an untreated request; None if none."""
    plain = run.trials[[not len(names) for names in run.trials["treatments"]]]
    found = run.findings[run.findings["trial_id"].isin(plain["trial_id"])]
    found = found.dropna(subset=["request_id"])
    if found.empty:
        return None
    return str(found["request_id"].iloc[0]), str(found["trial_id"].iloc[0])
