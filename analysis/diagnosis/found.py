"""What was found on a request: the first broken rule, the engine's death, a pool that was short."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.diagnosis.cache import cache_at
from analysis.diagnosis.case import Case, value_of
from analysis.diagnosis.journey import one_line, wanted_in_words
from analysis.sanitizer.findings import WRONG_DATA
from analysis.sanitizer.meanings import meaning_of

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')
_LEAK = "page-leak"
"""The rule of which a breach makes the pool smaller for those who come later."""


@dataclass(frozen=True)
class Found:
    """A broken rule, as the table `findings` has it."""

    rule: str
    cause: str
    severity: str
    message: str
    meaning: str
    """What it leads to, in a sentence; "" where nothing is known."""
    seq: int | None
    t_s: float | None
    invocation_id: int | None
    page: int | None
    slot: int | None
    request_id: str | None
    other_request_id: str | None
    count: int | None
    stack: str | None
    """The engine's own frames, innermost last."""

    @property
    def at(self) -> str:
        """At which step, in words."""
        parts = [] if self.invocation_id is None else [f"invocation {self.invocation_id}"]
        parts += [] if self.seq is None else [f"event {self.seq}"]
        parts += [] if self.t_s is None else [f"{self.t_s:.3f} s"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Death:
    """How the engine died."""

    message: str
    seq: int | None
    t_s: float | None
    frame: str | None
    """The innermost frame of the engine's own in the traceback that it printed."""
    culprits: tuple[str, ...]
    """Requests for whom the last operations before it had failed, the last one last."""
    failure: str | None
    """How the last of those operations failed."""


@dataclass(frozen=True)
class Shortage:
    """A pool that had too few pages."""

    request_id: str | None
    operation: str | None
    seq: int
    t_s: float
    wanted: str
    free: int | None
    counts: dict[str, int] | None
    """Pages by state at that moment; None where it cannot be replayed."""


def first_finding(case: Case) -> Found | None:
    """Return the first finding of wrong data on the request, failing that the first one at risk.

    What came before its end goes first, and that it was not answered goes last: that is not news.
    """
    own = case.findings[case.findings["request_id"] == case.name]
    end = case.seq_of("done")
    early = own if end is None else own[own["seq"].fillna(-1) < end]
    wrong = own[own["severity"] == WRONG_DATA]
    telling = early[early["rule"] != "stuck-request"]
    for choice in (wrong, telling, own[own["rule"] == "stuck-request"], own):
        if len(choice):
            return _found(choice.sort_values("seq", kind="stable").iloc[0])
    return None


def findings_of(case: Case) -> tuple[Found, ...]:
    """Return the first finding of each kind on the request, in order."""
    own = case.findings[case.findings["request_id"] == case.name]
    return tuple(_found(row) for _, row in own.sort_values("seq", kind="stable").iterrows())


def first_leak(case: Case, until: int | None) -> tuple[Found, int] | None:
    """Return the first finding that a page was lost before a place among the events.

    With it comes the number of requests on which such a thing was found by then.
    """
    leaks = case.findings[case.findings["rule"] == _LEAK]
    if until is not None:
        leaks = leaks[leaks["seq"].fillna(-1) <= until]
    if leaks.empty:
        return None
    leaks = leaks.sort_values("seq", kind="stable")
    return _found(leaks.iloc[0]), int(leaks["request_id"].nunique())


def shortage_of(case: Case, request_id: str, since: int = -1) -> Shortage | None:
    """Return the last time that the pool was too small for a request."""
    events = case.events
    own = events[
        (events["kind"] == "alloc_failed")
        & (events["request_id"] == request_id)
        & (events["seq"] > since)
    ]
    if own.empty:
        return None
    event = own.iloc[-1]
    seq = int(event["seq"])
    cache = cache_at(case, seq)
    return Shortage(
        request_id=request_id,
        operation=value_of(event["operation"]),
        seq=seq,
        t_s=float(event["t_s"]),
        wanted=wanted_in_words(event.to_dict()),
        free=value_of(event["free_pages"]),
        counts=None if cache is None else cache.counts,
    )


def failed_for(case: Case, request_id: str, since: int, until: int) -> tuple[int, str, str] | None:
    """Return the last operation that failed for a request between two places: seq, name, how."""
    events = case.events
    own = events[
        (events["kind"] == "failed")
        & (events["request_id"] == request_id)
        & (events["seq"] > since)
        & (events["seq"] <= until)
    ]
    if own.empty:
        return None
    event = own.iloc[-1]
    return int(event["seq"]), str(event["operation"]), one_line(str(event["message"]), 160)


def death_of(case: Case) -> Death | None:
    """Return how the engine of the trial died; None if it did not."""
    died = case.events[case.events["kind"] == "worker_died"]
    if died.empty and case.trial["status"] == "ok":
        return None
    if died.empty:
        message = case.trial["status_detail"] or f"The trial ended as {case.trial['status']}."
        # What hung was raised nowhere, whatever traceback came before it.
        frame = None if case.trial["status"] == "hung" else last_frame(case)
        return Death(one_line(message, 600), None, None, frame, (), None)
    event = died.iloc[0]
    seq = int(event["seq"])
    failed = case.events[(case.events["kind"] == "failed") & (case.events["seq"] < seq)]
    culprits: list[str] = []
    failure = None
    if len(failed):
        last = failed.iloc[-1]
        failure = (
            f"{last['operation']} (event {int(last['seq'])}): {one_line(str(last['message']))}"
        )
        culprits = [str(r) for r in dict.fromkeys(failed["request_id"].dropna())]
    return Death(
        message=one_line(str(event["message"]), 600),
        seq=seq,
        t_s=float(event["t_s"]),
        frame=last_frame(case),
        culprits=tuple(culprits[-4:]),
        failure=failure,
    )


def last_frame(case: Case) -> str | None:
    """Return the innermost frame of the engine in the last traceback of the trial's log."""
    frames = [
        match
        for match in _FRAME.finditer(case.trial["engine_log"] or "")
        if "shortfin" in match["file"]
    ]
    # The bridge to native code shows last; who raised it is the application's own.
    own = [match for match in frames if "shortfin_apps" in match["file"]] or frames
    if not own:
        return None
    file = own[-1]["file"].rpartition("site-packages/")[2]
    return f"{file}:{own[-1]['line']} in {own[-1]['name']}"


def _found(row: pd.Series[Any]) -> Found:
    rule, cause = str(row["rule"]), str(value_of(row["cause"]) or "")
    return Found(
        rule=rule,
        cause=cause,
        severity=str(value_of(row["severity"]) or ""),
        message=str(row["message"]),
        meaning=meaning_of(rule, cause),
        **{
            name: value_of(row[name])
            for name in (
                "seq", "t_s", "invocation_id", "page", "slot", "request_id", "other_request_id",
                "count", "stack",
            )
        },
    )  # fmt: skip
