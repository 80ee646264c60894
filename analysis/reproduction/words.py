"""Sentences and the issue about a reproduction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis.core.templates import paragraph, render
from analysis.core.wording import counted, finding_name, markdown_table, percent, short_files
from analysis.diagnosis import Explanation
from analysis.diagnosis.evidence import count_of
from analysis.reproduction.reproduce import Compared, Reproduction
from analysis.sanitizer.rules import RULES

_TEMPLATE = "reproduction.j2"
_STACK = 12
"""Most lines of a stack that are shown outside of the whole explanation."""


def replay_of(found: Reproduction) -> str:
    """Return how many fresh engines failed in the same way, with the interval over engines."""
    if found.replay is None:
        return "not measured"
    rate = found.replay
    interval = f"95% interval {percent(rate.low)} to {percent(rate.high)}"
    return f"{rate.failures} of {counted(rate.n, 'fresh engine')}, {interval}" + (
        "" if rate.by_engine else ", too narrow with so few engines"
    )


def description_of(found: Reproduction) -> str:
    """Return what the smallest workload is, and how often it fails, in one paragraph."""
    return paragraph("analysis.reproduction", _TEMPLATE, "description", found, replay_of(found))


def ruled_out(found: Reproduction) -> list[str]:
    """Return what was ruled out by measurement, and what was not, a sentence each."""
    return [sentence for sentence in _ruled_out(found) if sentence]


def _ruled_out(found: Reproduction) -> Iterator[str]:
    yield (
        "The model: the right answers are those of the reference decoder, which runs the same"
        " compiled program and weights without the server."
    )
    if len(found.best.requests) == 1:
        yield "Other requests: none are needed, the request fails alone on a fresh engine."
        return
    if (alone := found.alone) is not None:
        yield f"The prompt alone: {_compared(alone)} when {found.failed} was sent alone."
    if (other := found.reversed) is not None:
        if other.failed == 0:
            yield (f"The order of the requests matters: reversed, {_compared(other)}.")
        else:
            yield f"The order of the requests: reversed, {_compared(other)}, too."


def _compared(compared: Compared) -> str:
    return (
        f"{compared.failed} of {counted(compared.engines, 'fresh engine')} failed in the same way,"
        f" and {compared.right} answered everything right"
    )


def summary_of(found: Reproduction) -> str:
    """Return the result as text for a terminal."""
    return render(
        "analysis.reproduction", "summary.j2", found=found, replay=replay_of(found),
        ruled_out=ruled_out(found), steps=[(s.part, str(s.after)) for s in found.steps],
    )  # fmt: skip


def issue_of(
    found: Reproduction,
    explained: Explanation,
    script: str,
    file: str,
    output: str,
    fingerprints: str = "",
) -> str:
    """Return the text of an upstream issue as Markdown.

    `explained` explains the failed request on an engine with the smallest workload.
    """
    manifest = explained.trace.run.manifest
    names = {finding_name(one.rule, one.cause): one for one in explained.findings}
    finding = names.get(found.symptom.finding or "", explained.finding)
    return render(
        "analysis.reproduction", "issue.md.j2",
        found=found, explained=explained, finding=finding,
        rule=next((r.sentence for r in RULES if finding and r.name == finding.rule), ""),
        often="" if finding is None else counted(count_of(explained.trace, finding), "time"),
        stack=[] if finding is None else (finding.stack or "").splitlines()[-_STACK:],
        script=script, file=file, output=short_files(output), text=_without_paths(explained),
        machine=manifest["machine"], python=manifest["python"],
        replay=replay_of(found), ruled_out=ruled_out(found), waiting=_waiting(explained),
        requests=markdown_table(_requests(found)), fingerprints=fingerprints,
    )  # fmt: skip


def _without_paths(explained: Explanation) -> str:
    """Return the text of an explanation, with the run as it is called beside the issue."""
    path = explained.trace.run.path
    return str(explained).replace(str(path), path.name)


def _requests(found: Reproduction) -> list[dict[str, object]]:
    return [
        {
            "request": request.id,
            "client": number % found.best.concurrency,
            "sent at": f"{request.arrival_s:g} s",
            "prompt": f"`{request.prompt}`",
            "tokens asked for": request.max_new_tokens,
        }
        for number, request in enumerate(found.best.requests)
    ]


def _waiting(explained: Explanation) -> list[dict[str, Any]]:
    """Return the recorded state of every request without an answer, and the threads' stacks."""
    events = explained.trace.events
    stalls = events[events["kind"] == "stall"].drop_duplicates("request_id").to_dict("records")
    return [
        {
            "request": event["request_id"],
            "state": event["stall"]["state"],
            "phase": event["stall"]["phase"],
            "free": event["free_pages"],
            "threads": [
                {"thread": one["thread"], "frames": list(one["frames"] or ())[-_STACK:]}
                for one in event["stall"]["threads"] or ()
            ],
        }
        for event in stalls
        if event["stall"]
    ]
