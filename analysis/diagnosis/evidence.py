"""Evidence of a failure in the tables: findings, a dead engine, a pool without free pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.core.wording import one_line
from analysis.diagnosis.cache import cache_at
from analysis.diagnosis.request_trace import RequestTrace, value_of
from analysis.diagnosis.timeline import message_of, time_of, wanted_of
from analysis.recording.stacks import is_of_engine
from analysis.sanitizer.findings import WRONG_DATA, Finding

STUCK, LEAK, CONSEQUENCE = "stuck-request", "page-leak", "tainted-kv-read"
"""Rules: a request without an answer, a leaked page, a read of tainted data."""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')


@dataclass(frozen=True)
class EngineDeath:
    """How the engine died."""

    message: str
    seq: int | None = None
    t_s: float | None = None
    frame: str | None = None
    """The engine's innermost frame in its traceback."""
    requests: tuple[str, ...] = ()
    """Requests with a failed operation before it, the latest last."""
    failure: str | None = None
    """How the latest of these operations failed."""


@dataclass(frozen=True)
class Shortage:
    """An allocation that failed because the pool had too few pages."""

    request_id: str
    operation: str | None
    seq: int
    t_s: float
    wanted: str
    free: int | None
    counts: dict[str, int] | None
    """Number of pages in each state at that event; None if it cannot be replayed."""
    leak: Finding | None
    """The first page leak before it; None if there was none."""
    leaking_requests: int
    """Number of requests with leaked pages before it."""


@dataclass(frozen=True)
class Failure:
    """An operation of the cache that raised an error."""

    seq: int
    operation: str
    message: str


def findings_of(trace: RequestTrace) -> tuple[Finding, ...]:
    """Return the first finding of each kind about the request, in order."""
    own = trace.findings[trace.findings["request_id"] == trace.name]
    return _findings(own)


def first_finding(trace: RequestTrace, findings: tuple[Finding, ...]) -> Finding | None:
    """Return the first finding with wrong data about the request, else the first one at risk.

    Findings before the request's end come first; a missing answer comes last.
    """
    end = trace.seq_of("done")
    early = [f for f in findings if end is None or f.seq is None or f.seq < end]
    for choice in (
        [f for f in findings if f.severity == WRONG_DATA],
        [f for f in early if f.rule != STUCK],
        [f for f in findings if f.rule == STUCK],
        findings,
    ):
        if choice:
            return choice[0]
    return None


def count_of(trace: RequestTrace, finding: Finding) -> int:
    """Return how many such findings the request has."""
    rows = trace.findings
    same = (rows["rule"] == finding.rule) & (rows["cause"].fillna("") == finding.cause)
    return int(rows.loc[same & (rows["request_id"] == trace.name), "count"].fillna(1).sum())


def shortage_of(trace: RequestTrace, request_id: str, since: int = -1) -> Shortage | None:
    """Return the last allocation after an event that failed because the pool had too few pages."""
    own = trace.events_of("alloc_failed", request_id=request_id)
    own = own[own["seq"] > since]
    if own.empty:
        return None
    event = own.iloc[-1].to_dict()
    seq = int(event["seq"])
    cache = cache_at(trace, seq)
    leaks = trace.findings[trace.findings["rule"] == LEAK]
    leaks = leaks[leaks["seq"].fillna(-1) <= seq]
    leaked = cache is not None and cache.counts["leaked"] > 0
    return Shortage(
        request_id=request_id,
        operation=value_of(event["operation"]),
        seq=seq,
        t_s=time_of(event),
        wanted=wanted_of(event),
        free=value_of(event["free_pages"]),
        counts=None if cache is None else cache.counts,
        leak=_findings(leaks)[0] if leaked and len(leaks) else None,
        leaking_requests=int(leaks["request_id"].nunique()),
    )


def failure_of(
    trace: RequestTrace, request_id: str, since: int = -1, until: int | None = None
) -> Failure | None:
    """Return the last operation that failed for a request between two events."""
    own = trace.events_of("failed", request_id=request_id)
    own = own[own["seq"] > since]
    if until is not None:
        own = own[own["seq"] <= until]
    if own.empty:
        return None
    event = own.iloc[-1].to_dict()
    return Failure(int(event["seq"]), str(event["operation"]), message_of(event, 160))


def death_of(trace: RequestTrace) -> EngineDeath | None:
    """Return how the engine of the trial died; None if it did not."""
    died = trace.events[trace.events["kind"] == "worker_died"]
    status = trace.trial["status"]
    if died.empty and status == "ok":
        return None
    if died.empty:
        message = trace.trial["status_detail"] or f"The trial ended as {status}."
        # A trial that hung raised no error: a traceback in its log is older.
        frame = None if status == "hung" else last_frame(trace)
        return EngineDeath(one_line(message, 600), frame=frame)
    event = died.iloc[0].to_dict()
    failed = trace.events[(trace.events["kind"] == "failed") & (trace.events["seq"] < event["seq"])]
    failure = None
    if len(failed):
        last = failed.iloc[-1].to_dict()
        failure = f"{last['operation']} (event {int(last['seq'])}): {message_of(last)}"
    return EngineDeath(
        message=message_of(event, 600),
        seq=int(event["seq"]),
        t_s=time_of(event),
        frame=last_frame(trace),
        requests=tuple(map(str, dict.fromkeys(failed["request_id"].dropna())))[-4:],
        failure=failure,
    )


def last_frame(trace: RequestTrace) -> str | None:
    """Return the innermost frame of the engine in the last traceback of the trial's log."""
    log = trace.trial["engine_log"] or ""
    frames = [match for match in _FRAME.finditer(log) if is_of_engine(match["file"])]
    # The innermost frame is the bridge to native code; the engine's own frame is more useful.
    own = [match for match in frames if "shortfin_apps" in match["file"]] or frames
    if not own:
        return None
    file = own[-1]["file"].rpartition("site-packages/")[2]
    return f"{file}:{own[-1]['line']} in {own[-1]['name']}"


def _findings(rows: pd.DataFrame) -> tuple[Finding, ...]:
    return tuple(_finding(row) for _, row in rows.sort_values("seq", kind="stable").iterrows())


def _finding(row: pd.Series[Any]) -> Finding:
    named = ("seq", "t_s", "invocation_id", "page", "slot", "request_id", "other_request_id",
             "thread", "stack", "other_stack")  # fmt: skip
    return Finding(
        rule=str(row["rule"]),
        cause=str(value_of(row["cause"]) or ""),
        severity=str(value_of(row["severity"]) or ""),
        message=str(row["message"]),
        **{name: value_of(row[name]) for name in named},
    )
