"""`explain`: an explanation from what was recorded of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.diagnosis.cache import Caches, caches_of
from analysis.diagnosis.diagnosis import diagnosis_of, summary_of
from analysis.diagnosis.divergence import Divergence, divergence_of
from analysis.diagnosis.evidence import death_of, findings_of, first_finding
from analysis.diagnosis.explanation import Explanation
from analysis.diagnosis.pages import histories_of, pages_of
from analysis.diagnosis.request_trace import RequestTrace, trace_of
from analysis.diagnosis.timeline import RequestInvocation, invocations_of, peers_of, timeline_of
from analysis.runs.tables import broken_json

if TYPE_CHECKING:
    from analysis.runs.store import Run


@broken_json("What was recorded of the run")
def explain(
    run: Run, request_id: str, trial_id: str | None = None, *, reference: bool = True
) -> Explanation:
    """Explain why a request of a run failed, from what was recorded of it.

    `trial_id` chooses the trial where several have a request of that name. With `reference` the
    reference decoder computes its probabilities of the first wrong token, in a child process of
    the release. Raises RunError if there is no such request or trial, or more than one.
    """
    trace = trace_of(run, request_id, trial_id)
    invocations = invocations_of(trace)
    findings = findings_of(trace)
    finding = first_finding(trace, findings)
    death = death_of(trace)
    page = None if finding is None else finding.page
    histories = histories_of(trace, pages_of(trace, invocations, [page]))
    divergence = divergence_of(trace, invocations, reference=reference)
    caches = caches_of(trace)
    begin, end = trace.seq_of("submitted"), trace.seq_of("done")
    if begin is None:
        begin = next((i.seq for i in invocations if i.seq is not None), 0)
    return Explanation(
        request_id=trace.name,
        trial_id=str(trace.trial["trial_id"]),
        outcome=trace.outcome,
        summary=summary_of(trace),
        diagnosis=diagnosis_of(trace, invocations, findings, finding, divergence, death, histories),
        request=trace.request,
        trial=trace.trial,
        timeline=timeline_of(trace, invocations),
        invocations=invocations,
        peers=peers_of(trace, invocations),
        finding=finding,
        findings=findings,
        death=death,
        pages=histories,
        caches=caches,
        divergence=divergence,
        missing=_missing(trace, invocations, caches, divergence),
        begin=begin,
        end=end if end is not None else max(trace.last_seq, begin),
        trace=trace,
    )


def _missing(
    trace: RequestTrace,
    invocations: tuple[RequestInvocation, ...],
    caches: Caches,
    divergence: Divergence | None,
) -> tuple[str, ...]:
    """Return what is not known because it was not recorded."""
    sentences = []
    if not trace.recorded:
        sentences.append(
            "Nothing was recorded of this trial: sweep with --sanitize or --observe to record it."
        )
    elif trace.events.empty:
        sentences.append("No events were recorded, so there is no history of its pages.")
    elif trace.seq_of("submitted") is None:
        sentences.append("The recording does not have its beginning.")
    if trace.recorded and trace.invocations.empty:
        sentences.append("No invocation was recorded in its trial.")
    elif trace.recorded and not invocations:
        sentences.append("It was in no finished invocation.")
    if trace.recorded and (caches.before is None or caches.after is None):
        sentences.append(caches.how)
    if trace.outcome == "wrong" and divergence is None:
        sentences.append(
            "No reference answer was stored with it, so its first wrong token is unknown."
            if trace.request["reference_tokens"] is None
            else "Its tokens equal the reference decoder's."
        )
    if trace.cut is not None:
        sentences.append(trace.cut)
    if trace.trial["status_detail"] and trace.trial["status"] == "ok":
        sentences.append(str(trace.trial["status_detail"]))
    return (*sentences, *(divergence.missing if divergence is not None else ()))
