"""The diagnosis of a failed request: facts from the tables, written with templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.core.templates import lines, render
from analysis.core.wording import one_line
from analysis.diagnosis.divergence import Divergence
from analysis.diagnosis.evidence import (
    CONSEQUENCE,
    STUCK,
    EngineDeath,
    failure_of,
    shortage_of,
)
from analysis.diagnosis.pages import PageHistory, owner_in_words
from analysis.diagnosis.request_trace import RequestTrace
from analysis.diagnosis.timeline import RequestInvocation, state_of
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.sanitizer.rules import consequence_of

_PACKAGE = "analysis.diagnosis"
_DEATH = 160
"""Most characters of the message of a died engine."""
_NO_ANSWER = ("timeout", "engine_died")


def summary_of(trace: RequestTrace) -> str:
    """Return how the request ended, in a sentence."""
    arrived = len(trace.events_of("first_token", "token"))
    return render(_PACKAGE, "summary.j2", trace=trace, arrived=arrived, **trace.request).strip()


def diagnosis_of(
    trace: RequestTrace,
    invocations: Sequence[RequestInvocation],
    findings: Sequence[Finding],
    finding: Finding | None,
    divergence: Divergence | None,
    death: EngineDeath | None,
    histories: Sequence[PageHistory],
) -> tuple[str, ...]:
    """Return why the request failed according to the recording, in sentences."""
    facts: dict[str, Any] = {
        "trace": trace,
        "finding": finding,
        "divergence": divergence,
        "death": None,
        "peer_shortage": None,
        "consequence": _consequence,
        "one_line": one_line,
    }
    if trace.outcome == "wrong":
        facts |= _wrong(invocations, findings, finding, divergence, histories)
    elif trace.outcome == "rejected":
        facts |= _rejected(trace)
    elif trace.outcome != "ok":
        facts |= _stopped(trace, invocations, finding)
        if death is not None and trace.outcome in ("engine_died", "error", "timeout"):
            facts["death"], facts["death_message"] = (
                death,
                one_line(death.message.rstrip("."), _DEATH),
            )
            if death.requests and death.requests[-1] != trace.name:
                facts["peer_shortage"] = shortage_of(trace, death.requests[-1])
    return lines(_PACKAGE, "diagnosis.j2", **facts)


def _consequence(finding: Finding) -> str:
    return consequence_of(finding.rule, finding.cause)


def _wrong(
    invocations: Sequence[RequestInvocation],
    findings: Sequence[Finding],
    finding: Finding | None,
    divergence: Divergence | None,
    histories: Sequence[PageHistory],
) -> dict[str, Any]:
    """Return the facts of a wrong answer: the time of the first finding, and its page's owner."""
    token_seq = None if divergence is None else divergence.seq
    earlier, wrong_at = None, None if divergence is None else divergence.invocation_id
    if finding is not None and wrong_at is not None and finding.invocation_id is not None:
        earlier = sum(finding.invocation_id <= i.invocation_id < wrong_at for i in invocations)
    first_seq = (finding.seq or 0) if finding is not None else 0
    owner, writer = (None, None) if finding is None else _ownership(finding, histories)
    return {
        "wrong_data": WRONG_DATA,
        "late": finding is not None
        and None not in (finding.seq, token_seq)
        and first_seq > (token_seq or 0),
        "earlier": earlier,
        "owner": owner,
        "writer": writer,
        "further": [
            further
            for further in findings
            if finding is not None
            and further.severity == WRONG_DATA
            and further.rule not in (CONSEQUENCE, finding.rule)
            and further.seq is not None
            and token_seq is not None
            and first_seq <= further.seq <= token_seq
        ],
    }


def _ownership(finding: Finding, histories: Sequence[PageHistory]) -> tuple[str | None, str | None]:
    """Return the owner of a finding's page at its event, and the last write to the page.

    None if the request itself was the owner, or if the owner is unknown.
    """
    history = next((h for h in histories if h.page == finding.page), None)
    if history is None or finding.seq is None:
        return None, None
    owners = next((i.owners for i in history.owners if i.begin <= finding.seq < i.end), None)
    if owners is None or owners == (finding.request_id,):
        return None, None
    written = [e.words for e in history.entries if e.kind == "write" and e.seq <= finding.seq]
    return owner_in_words(owners), written[-1] if written else None


def _rejected(trace: RequestTrace) -> dict[str, Any]:
    """Return which requests were under way when a request was rejected."""
    sent, events = trace.seq_of("submitted"), trace.events
    before = events[events["seq"] < (-1 if sent is None else sent)]
    ended = before[before["kind"] == "done"]
    begun = before[before["kind"] == "submitted"]["request_id"].dropna()
    waiting = sorted(set(begun) - set(ended["request_id"].dropna()))
    outcomes = dict(zip(trace.requests["request_id"], trace.requests["outcome"], strict=True))
    timed_out = ended[ended["outcome"].isin(_NO_ANSWER)]["request_id"].dropna()
    return {
        "sent": sent,
        "waiting": waiting,
        "timed_out": sorted(timed_out),
        "unanswered": [name for name in waiting if outcomes.get(name) in _NO_ANSWER],
    }


def _stopped(
    trace: RequestTrace, invocations: Sequence[RequestInvocation], finding: Finding | None
) -> dict[str, Any]:
    """Return the facts of a request that ended without an answer."""
    end = trace.seq_of("done")
    until = end if end is not None else trace.last_seq
    states = [state_of(event) for event in trace.events_of("stall").to_dict("records")]
    last = invocations[-1] if invocations else None
    peer = None
    if last is not None and trace.outcome in (*_NO_ANSWER, "empty"):
        since = last.seq if last.seq is not None else -1
        failures = ((name, failure_of(trace, name, since, until)) for name in last.others)
        peer = next(((name, found) for name, found in failures if found is not None), None)
    return {
        "shortage": shortage_of(trace, trace.name),
        "failure": failure_of(trace, trace.name, until=until),
        "last": last if trace.outcome in (*_NO_ANSWER, "empty") else None,
        "peer": peer,
        "left_short": None
        if peer is None or last is None
        else shortage_of(trace, peer[0], last.seq if last.seq is not None else -1),
        "state": states[0] if states and trace.outcome == "timeout" else None,
        "stuck": STUCK,
    }
