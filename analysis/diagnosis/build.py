"""`explain`: builds the explanation of a request from its recording."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.diagnosis.cache import Caches, caches_of
from analysis.diagnosis.diagnosis import diagnosis_of, summary_of
from analysis.diagnosis.divergence import Divergence, divergence_of
from analysis.diagnosis.evidence import death_of, findings_of, first_finding
from analysis.diagnosis.explanation import Explanation
from analysis.diagnosis.pages import histories_of, pages_of
from analysis.diagnosis.request_trace import RequestTrace, trace_of, value_of
from analysis.diagnosis.timeline import RequestInvocation, invocations_of, peers_of, timeline_of
from analysis.diagnosis.verdict import verdict_of
from analysis.runs.tables import broken_json
from analysis.sweep.rerun_solo import rerun_wrong_prompts, wrong_requests

if TYPE_CHECKING:
    from analysis.runs.store import Run


@broken_json("The recording of the run")
def explain(
    run: Run,
    request_id: str,
    trial_id: str | None = None,
    *,
    reference: bool = True,
    alone: bool = False,
) -> Explanation:
    """Explain why a request of a run failed, from its recording.

    `trial_id` selects the trial if several have a request of that name. If `reference` is set, the
    reference decoder computes the probabilities of the first wrong token, and its step again, in
    child processes of the release. If `alone` is set, a wrongly answered prompt is sent to a fresh
    engine, alone. Raises RunError if the request or trial does not exist or is ambiguous.
    """
    trace = trace_of(run, request_id, trial_id)
    invocations = invocations_of(trace)
    findings = findings_of(trace)
    finding = first_finding(trace, findings)
    death = death_of(trace)
    page = None if finding is None else finding.page
    histories = histories_of(trace, pages_of(trace, invocations, [page]))
    divergence = divergence_of(trace, invocations, reference=reference)
    outcome_alone = _alone(trace) if alone and trace.outcome == "wrong" else None
    verdict = verdict_of(
        trace, invocations, findings, divergence, reference=reference, alone=outcome_alone
    )
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
        verdict=verdict,
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


def _alone(trace: RequestTrace) -> str:
    """Return the outcome of the prompt alone on a fresh engine, or why there is none."""
    wrong = wrong_requests(trace.run)
    own = (wrong["trial_id"] == trace.trial["trial_id"]) & (wrong["request_id"] == trace.name)
    row = rerun_wrong_prompts(trace.run, prompts=wrong[own]).iloc[0]
    return str(value_of(row["outcome"]) or f"unknown ({row['detail']})")


def _missing(
    trace: RequestTrace,
    invocations: tuple[RequestInvocation, ...],
    caches: Caches,
    divergence: Divergence | None,
) -> tuple[str, ...]:
    """Return what is unknown because it was not recorded, in sentences."""
    sentences = []
    if not trace.recorded:
        how = "Sweep with --sanitize or --observe to record it."
        if trace.trial.get("target") not in (None, "engine"):
            how = "A server cannot be recorded. Sweep again with --target engine --sanitize."
        sentences.append(f"This trial has no recording. {how}")
    elif trace.events.empty:
        sentences.append("No events were recorded, so the history of its pages is unknown.")
    elif trace.seq_of("submitted") is None:
        sentences.append("The recording began after the request was submitted.")
    if trace.recorded and trace.invocations.empty:
        sentences.append("No invocations were recorded in the trial.")
    elif trace.recorded and not invocations:
        sentences.append("The request was in no finished invocation.")
    if trace.recorded and (caches.before is None or caches.after is None):
        sentences.append(caches.how)
    if trace.outcome == "wrong" and divergence is None:
        sentences.append(
            "The reference answer was not recorded, so the first wrong token is unknown."
            if trace.request["reference_tokens"] is None
            else "The tokens equal the reference decoder's."
        )
    if trace.cut is not None:
        sentences.append(trace.cut)
    if trace.trial["status_detail"] and trace.trial["status"] == "ok":
        sentences.append(str(trace.trial["status_detail"]))
    return (*sentences, *(divergence.missing if divergence is not None else ()))
