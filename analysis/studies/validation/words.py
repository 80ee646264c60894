"""A ladder in words: what each rung came to, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.stats.clustered import FEWEST
from analysis.studies.validation.result import Found, Isolated, Ladder, Rung
from analysis.workloads.named import in_turn

_MIB = 2**20
_SHOWN = 3
_CAVEAT = (
    "Bounds are one-sided, with {} confidence. That of requests holds only if requests were"
    " independent, which those that share batches are not; that of engines holds as it is{}."
)
_MIX = ", for the mix of workloads that the rung asked, and for none of them by itself"


def in_words(ladder: Ladder) -> str:
    """Return what the ladder came to as Markdown: a verdict, then a line for every rung."""
    lines = [f"**{ladder.name}: {_verdict(ladder)}**", ""]
    if len(asked := in_turn(ladder.workload)) > 1:
        lines += [f"Workloads, of which each fresh engine is asked one: {_list(list(asked))}.", ""]
    if ladder.isolated is not None:
        lines.append(f"- Cache operations by themselves: {isolated_in_words(ladder.isolated)}")
    else:
        lines.append("- Cache operations by themselves: not examined.")
    lines += [f"- {rung.name}: {rung_in_words(rung)}" for rung in ladder.rungs]
    begun = {rung.level for rung in ladder.rungs}
    if rest := [str(level) for level in ladder.levels if level not in begun]:
        lines.append(f"- Not begun: {_list(rest)} at once.")
    if any(rung.accepted and not rung.failed_trials for rung in ladder.rungs):
        mixed = any(len(rung.workloads) > 1 for rung in ladder.rungs)
        lines += ["", _CAVEAT.format(_percent(ladder.confidence), _MIX if mixed else "")]
    if stopped := next((r for r in ladder.rungs if r.explanation), None):
        lines += ["", f"Why it stopped at {stopped.name}:", "", stopped.explanation]
    return "\n".join(lines)


def in_a_sentence(ladder: Ladder) -> str:
    """Return the verdict with the ladder's setting before it."""
    return f"{ladder.name}: {_verdict(ladder)}"


def answer_in_a_sentence(
    whole: Sequence[Ladder], singles: Sequence[Ladder] = (), stressed: Sequence[str] = ()
) -> str:
    """Return the answer to "do the fixes hold?": all of them at once, and each by itself.

    `stressed` are clauses on what became of them under stress.
    """
    clauses = []
    for ladder in whole:
        count = len(ladder.treatments)
        fixes = f"{'all ' if count > 1 else ''}{count} fix{'es' if count != 1 else ''} at once"
        clauses.append(f"with {fixes}, prefix sharing {ladder.prefix_sharing} {_short(ladder)}")
    if singles:
        held = [ladder for ladder in singles if ladder.verdict == "validated"]
        failed = sum(ladder.verdict == "failed" for ladder in singles)
        text = f"of {len(singles)} single fixes {failed} failed and {len(held)} held"
        if held:
            named = [
                f"{one.treatments[0]}, {one.prefix_sharing}, up to {one.rungs[-1].name}:"
                f" {_bounds(one)}"
                for one in held
            ]
            text += f" ({'; '.join(named)})"
        clauses.append(text)
    clauses += stressed
    sentence = "; ".join(clauses) or "no ladder was climbed"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _short(ladder: Ladder) -> str:
    if ladder.verdict == "validated":
        return f"is validated up to {ladder.rungs[-1].name} ({_bounds(ladder)})"
    return _ended(ladder) if ladder.verdict == "failed" else f"is {_ended(ladder)}"


def _bounds(ladder: Ladder) -> str:
    """Say what a validated ladder bounds, by requests and by engines in one sentence."""
    rung = max(ladder.rungs, key=lambda rung: rung.upper_of_engines)
    return (
        f"a failure rate above {_percent(ladder.rate)} would have shown with"
        f" {_percent(ladder.confidence)} confidence if requests were independent, and"
        f" {rung.failed_trials} of {rung.trials} engines, which are independent, bounds engines"
        " with"
        f" a failure at {_percent(rung.upper_of_engines)}"
        + (f", {_mix(rung)}" if len(rung.workloads) > 1 else "")
    )


def _mix(rung: Rung) -> str:
    """Say of what a rung's bounds hold, where its engines were asked several workloads."""
    engines = [f"{count} {name}" for name, count in sorted(rung.workloads.items())]
    text = f"in the mix of workloads that was asked (engines: {', '.join(engines)})"
    few = [name for name, count in rung.workloads.items() if count < FEWEST]
    if len(few) == len(rung.workloads):
        return f"{text}; no workload by itself is bounded, by fewer than {FEWEST} engines each"
    if few:
        return f"{text}; {_list(sorted(few))} by itself is not bounded, by fewer than {FEWEST}"
    return f"{text}, not in one by itself"


def isolated_in_words(isolated: Isolated) -> str:
    """Return what the cache's operations by themselves came to."""
    if isolated.ok is None:
        return isolated.problem or "no result."
    many = f"{isolated.interleavings:,} interleavings"
    many += ", which are all there are" if isolated.complete else ", not all there are"
    if isolated.failures:
        first = isolated.failures[0].rstrip(".")
        return f"{many}; {len(isolated.failures)} can fail on this release's threads: {first}."
    elsewhere = ""
    if isolated.elsewhere:
        elsewhere = f" ({isolated.elsewhere} fail in ways in which its threads do not call them)"
    more = "" if isolated.complete else " The rest takes more time."
    return f"{many}; none fails on this release's threads{elsewhere}.{more}"


def rung_in_words(rung: Rung) -> str:
    """Return what one rung came to, in sentences."""
    sentences = [_requests(rung), *_trouble(rung)]
    if rung.accepted and not (rung.findings or rung.leaked or rung.endings or rung.unchecked):
        sentences.append("No rule was broken, and no page was lost.")
    sentences += [f"Tolerated: {found.name}, for {found.reason}." for found in rung.tolerated]
    if rung.verdict == "void":
        sentences.append(
            f"Void: of {rung.controls} planted faults {rung.alarms} were found, so silence means"
            " nothing."
        )
    elif rung.planted and not rung.controls and rung.verdict != "failed":
        sentences.append(
            f"The planted fault ({', '.join(rung.planted)}) was never injected, so silence"
            " means nothing yet."
        )
    elif not rung.controls and rung.verdict != "failed":
        sentences.append("No planted fault was tried, so silence means nothing yet.")
    if rung.accepted < rung.needed and rung.verdict == "undecided":
        sentences.append(
            f"Undecided: a failure rate of {_percent(rung.rate)} takes {rung.needed} accepted"
            f" requests to show with {_percent(rung.confidence)} confidence."
        )
    sentences.append(_resources(rung))
    return " ".join(sentence for sentence in sentences if sentence)


def _verdict(ladder: Ladder) -> str:
    if ladder.verdict == "validated":
        highest = ladder.rungs[-1].name
        return f"validated up to {highest}: on every rung {_bounds(ladder)}."
    if ladder.verdict == "void":
        return f"{_ended(ladder)}: the alarm did not sound when it should have."
    return f"{_ended(ladder)}."


def _ended(ladder: Ladder) -> str:
    """Say where a ladder ended that is not validated, and how."""
    last = ladder.last
    ended = ""
    if ladder.verdict == "undecided" and ladder.out_of_time:
        ended = " when its time was up"
    if last is None:
        return f"{ladder.verdict}, not begun{ended}"
    where = "in the cache's operations by themselves"
    if isinstance(last, Rung):
        where = f"at {last.name}"
    return f"{ladder.verdict} {where}{ended}"


def _requests(rung: Rung) -> str:
    refused = []
    if rung.refusals:
        refused.append(f"{rung.refusals} times one was refused and sent again")
    if rung.rejected:
        refused.append(f"{rung.rejected} were never taken and count for nothing")
    note = f" ({'; '.join(refused)})" if refused else ""
    engines = _count(rung.trials, "fresh engine")
    if not rung.accepted:
        return f"No request was accepted{note} by {engines}."
    kinds = _list([f"{count} {name}" for name, count in rung.failures.items()])
    failed = f"{rung.failed} failed ({kinds})" if rung.failed else "none failed"
    text = f"{rung.accepted} requests accepted{note} by {engines}, {failed}"
    if rung.failed_trials:
        return f"{text}."
    return (
        f"{text}: at most {_percent(rung.upper)} of requests do if they are independent, and at"
        f" most {_percent(rung.upper_of_engines)} of engines, which are"
        + (f", {_mix(rung)}." if len(rung.workloads) > 1 else ".")
    )


def _trouble(rung: Rung) -> list[str]:
    sentences = []
    if rung.endings:
        first = rung.endings[0].rstrip(".")
        bad = _count(len(rung.endings), "engine")
        sentences.append(f"{bad} did not end well, the first so: {first}.")
    if rung.findings:
        named = [_found(found) for found in rung.findings[:_SHOWN]]
        more = len(rung.findings) - _SHOWN
        named += [f"{more} more"] if more > 0 else []
        sentences.append(f"Rules broken: {'; '.join(named)}.")
    if rung.leaked:
        pages = f"{rung.leaked} page{'s are' if rung.leaked > 1 else ' is'}"
        sentences.append(f"{pages} neither free nor cached when nobody is served any more.")
    sentences += [f"Not all was watched: {sentence}" for sentence in rung.unchecked]
    return sentences


def _found(found: Found) -> str:
    many = _count(found.requests, "request") if found.requests else _count(found.trials, "engine")
    return f"{found.name}, {found.severity} in {many}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _resources(rung: Rung) -> str:
    parts = []
    if rung.peak_rss_bytes:
        parts.append(f"at most {rung.peak_rss_bytes / _MIB:.0f} MiB resident")
    if rung.pages_in_use is not None:
        parts.append(f"at most {rung.pages_in_use} of {rung.page_count} pages in use")
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.3g}%"


def _list(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)
