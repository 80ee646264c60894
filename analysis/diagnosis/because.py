"""Why a request failed, in sentences; each says only what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from analysis.diagnosis.case import Case
from analysis.diagnosis.divergence import Divergence
from analysis.diagnosis.found import (
    Death,
    Found,
    Shortage,
    failed_for,
    first_leak,
    shortage_of,
)
from analysis.diagnosis.journey import Flown, listed, one_line, stalled
from analysis.diagnosis.pages import PageHistory, owners_in_words
from analysis.sanitizer.findings import WRONG_DATA

_DEATH = 160
"""Most characters of how a worker died."""
_CONSEQUENCE = "tainted-kv-read"
"""The rule that is broken by whatever reads what came of wrong data."""


def what_of(case: Case, divergence: Divergence | None) -> str:
    """Return in a sentence how the request ended."""
    name, request = case.name, case.request
    arrived = int(
        (
            (case.events["request_id"] == name) & case.events["kind"].isin(["first_token", "token"])
        ).sum()
    )
    had = f", after {_many(arrived, 'token')} had arrived" if arrived else ""
    latency = "" if request["latency_s"] is None else f" after {request['latency_s']:.3f} s"
    match case.outcome:
        case "ok":
            return f"{name} was answered rightly{latency}; it did not fail."
        case "wrong":
            said = f"{name} was answered wrongly: “{one_line(request['text'] or '', 80)}”"
            wanted = request["expected_text"]
            return f"{said} instead of “{one_line(wanted, 80)}”." if wanted else f"{said}."
        case "empty":
            return f"{name} was completed with an empty answer{latency}{had}."
        case "timeout":
            return f"{name} had no answer{latency} and was given up{had}."
        case "engine_died":
            return f"{name} was lost{latency}: the engine did not live to answer it{had}."
        case "rejected":
            return f"{name} was refused{latency}: {one_line(request['error'] or 'no reason given')}"
    return f"{name} ended with an error{latency}: {one_line(request['error'] or 'none was told')}"


def because(
    case: Case,
    flown: Sequence[Flown],
    findings: Sequence[Found],
    finding: Found | None,
    divergence: Divergence | None,
    death: Death | None,
    histories: Sequence[PageHistory],
) -> tuple[str, ...]:
    """Return why the request failed, as far as what was recorded tells it."""
    if case.outcome == "ok":
        return () if finding is None else tuple(_all_the_same(finding))
    if not case.recorded:
        return ("Nothing was recorded of its trial, so what went on inside is unknown.",)
    sentences: list[str] = []
    if case.outcome == "wrong":
        sentences += _wrong(flown, findings, finding, divergence, histories)
    elif case.outcome == "rejected":
        sentences += _refused(case)
    else:
        if death is not None and case.outcome in ("engine_died", "error", "timeout"):
            sentences += _dead(case, death)
        sentences += _standstill(case, flown, finding)
    if not sentences and finding is not None:
        sentences.append(finding.message)
    return tuple(sentences) or (
        "No rule was seen broken on it and no operation failed for it, so what was recorded does"
        " not tell why.",
    )


def _all_the_same(finding: Found) -> Iterator[str]:
    said = f"Yet a rule was broken on it, first at {finding.at}: {finding.message}"
    yield f"{said} {finding.meaning}".strip()


def _wrong(
    flown: Sequence[Flown],
    findings: Sequence[Found],
    finding: Found | None,
    divergence: Divergence | None,
    histories: Sequence[PageHistory],
) -> Iterator[str]:
    if divergence is not None:
        where = (
            ""
            if divergence.invocation_id is None
            else f", chosen in invocation {divergence.invocation_id}"
        )
        yield (
            f"Token {divergence.place} of its answer{where}, is the first wrong one:"
            f" {divergence.given_text} where {divergence.right_text} is right."
        )
    if finding is None:
        if divergence is None:
            return
        yield "No rule was seen broken on it, so what was recorded does not tell why."
        return
    after = (
        divergence is not None
        and finding.seq is not None
        and divergence.seq is not None
        and finding.seq > divergence.seq
    )
    if after:
        yield "Nothing was found on it before that token."
        yield f"The first finding came later, at {finding.at}: {finding.message}"
    else:
        yield f"{_how_early(flown, finding, divergence)} {finding.message}"
    if finding.severity != WRONG_DATA:
        yield "No wrong data was seen to be read, only that rule broken."
    if finding.meaning:
        yield finding.meaning
    if (owned := _whose(finding, histories)) is not None:
        yield owned
    for further in _further(findings, finding, divergence):
        yield f"Before that token, too ({further.at}): {further.message} {further.meaning}".strip()


def _further(findings: Sequence[Found], first: Found, divergence: Divergence | None) -> list[Found]:
    """Return what else was read that is no consequence of the first finding, before the token."""
    if divergence is None or divergence.seq is None:
        return []
    return [
        further
        for further in findings
        if further.severity == WRONG_DATA
        and further.rule not in (_CONSEQUENCE, first.rule)
        and further.seq is not None
        and (first.seq or 0) <= further.seq <= divergence.seq
    ]


def _how_early(flown: Sequence[Flown], finding: Found, divergence: Divergence | None) -> str:
    if divergence is None or divergence.invocation_id is None or finding.invocation_id is None:
        return f"The first finding on it, at {finding.at}:"
    between = sum(
        finding.invocation_id <= invocation.invocation_id < divergence.invocation_id
        for invocation in flown
    )
    if between <= 0:
        return f"In that very invocation ({finding.at}):"
    return f"{_many(between, 'invocation')} of its own earlier ({finding.at}):"


def _whose(finding: Found, histories: Sequence[PageHistory]) -> str | None:
    """Say in whose hands the page of a finding was, and who had written it last before."""
    history = next((h for h in histories if h.page == finding.page), None)
    if history is None or finding.seq is None:
        return None
    seq = finding.seq
    stay = next((s for s in history.stays if s.begin <= seq < s.end), None)
    if stay is None or stay.owners == (finding.request_id,):
        return None
    said = f"Page {finding.page} was then {owners_in_words(stay.owners)}"
    last = [e for e in history.entries if e.kind == "write" and e.seq <= seq]
    return f"{said}; the last to write there: {last[-1].words}." if last else f"{said}."


def _refused(case: Case) -> Iterator[str]:
    sent = case.seq_of("submitted")
    if sent is None:
        return
    events = case.events
    begun = events[(events["kind"] == "submitted") & (events["seq"] < sent)]
    ended = events[(events["kind"] == "done") & (events["seq"] < sent)]
    waiting = sorted(set(begun["request_id"].dropna()) - set(ended["request_id"].dropna()))
    yield f"When it was sent, {_many(len(waiting), 'other')} had not ended" + (
        f": {listed(waiting)}." if waiting else "."
    )
    outcomes = case.requests.set_index("request_id")["outcome"]
    given_up = ended[ended["outcome"].isin(["timeout", "engine_died"])]["request_id"].dropna()
    if len(given_up):
        yield (
            f"{listed(sorted(given_up))} had been given up before it without an answer, and may"
            f" still count for the engine; an explanation of {min(given_up)} tells why."
        )
    bad = [request for request in waiting if outcomes.get(request) in ("timeout", "engine_died")]
    if bad:
        yield f"Of those, {listed(bad)} never got an answer; an explanation of {bad[0]} tells why."


def _dead(case: Case, death: Death) -> Iterator[str]:
    yield one_line(death.message.rstrip("."), _DEATH) + "."
    if death.frame:
        yield f"It was raised in {death.frame}."
    if death.culprits:
        # Told as a sequence, not as a cause: which task raised it, the traceback does not say.
        yield (
            f"Before it, operations had failed for {listed(death.culprits)}; the last one was"
            f" {death.failure.rstrip('.') if death.failure else 'not told'}."
        )
        short = shortage_of(case, death.culprits[-1])
        if short is not None and case.name != death.culprits[-1]:
            yield from _short(case, short)


def _standstill(case: Case, flown: Sequence[Flown], finding: Found | None) -> Iterator[str]:
    end = case.seq_of("done")
    until = end if end is not None else int(case.events["seq"].max()) if len(case.events) else 0
    short = shortage_of(case, case.name)
    if short is not None:
        yield from _short(case, short)
    elif (failed := failed_for(case, case.name, -1, until)) is not None:
        yield f"{failed[1]} failed for it in event {failed[0]}: {failed[2]}"
    elif case.cut is not None:
        yield "What went on with it last is not in the recording."
    elif flown and case.outcome in ("timeout", "engine_died", "empty"):
        yield from _left_behind(case, flown[-1], until)
    if case.outcome == "timeout":
        where = next((m for m in _waiting(case)), None)
        if where:
            yield f"When it was given up the engine had it as “{where}”."
    if finding is not None and finding.rule != "stuck-request":
        said = f"The first finding on it, at {finding.at}: {finding.message}"
        yield f"{said} {finding.meaning}".strip()


def _short(case: Case, short: Shortage) -> Iterator[str]:
    free = "" if short.free is None else f" and {_were(short.free)} free"
    yield (
        f"In {short.operation} for {short.request_id} (event {short.seq}, {short.t_s:.3f} s)"
        f" {short.wanted}{free}{_of(short)}."
    )
    leaked = (short.counts or {}).get("leaked", 0)
    if leaked and (leak := first_leak(case, short.seq)) is not None:
        yield _leaked(*leak)


def _of(short: Shortage) -> str:
    if short.counts is None:
        return ""
    counts = short.counts
    return (
        f"; of {sum(counts.values())} pages {_were(counts['live'])} held by requests,"
        f" {counts['cached']} cached and {counts['leaked']} leaked"
    )


def _leaked(leak: Found, requests: int) -> str:
    others = f"; by then pages of {_many(requests, 'request')} had leaked" if requests > 1 else ""
    return f"The first leak, at {leak.at}: {leak.message.rstrip('.')}{others}."


def _left_behind(case: Case, last: Flown, until: int) -> Iterator[str]:
    """Say what became of those with whom it flew last, if that kept it from flying again."""
    since = last.seq if last.seq is not None else -1
    for other in last.others:
        failed = failed_for(case, other, since, until)
        if failed is not None:
            seq, operation, how = failed
            short = shortage_of(case, other, since)
            what = how
            if short is not None:
                what = f"{short.wanted}, {_were(short.free or 0)} free{_of(short)}"
            yield (
                f"After its last invocation, {last.invocation_id}, which it shared with {other},"
                f" {operation} failed for {other} (event {seq}: {what}), and {case.name} never"
                " flew again."
            )
            if short is not None and (short.counts or {}).get("leaked"):
                yield from list(_short(case, short))[1:]
            return
    yield f"Its last invocation was {last.invocation_id}, a {last.phase}; it never flew again."


def _waiting(case: Case) -> Iterator[str]:
    events = case.events
    own = events[(events["kind"] == "stall") & (events["request_id"] == case.name)]
    for stall in own["stall"]:
        if isinstance(stall, Mapping):
            yield stalled(stall)


def _were(number: int) -> str:
    return f"{number} {'was' if number == 1 else 'were'}"


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
