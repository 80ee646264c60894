"""Why a request failed: all that was recorded of it, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.diagnosis.because import because, what_of
from analysis.diagnosis.cache import Caches, Pool, caches_of, pool_until
from analysis.diagnosis.case import Case, case_of
from analysis.diagnosis.divergence import Divergence, divergence_of
from analysis.diagnosis.found import Death, Found, death_of, findings_of, first_finding
from analysis.diagnosis.journey import (
    Fellow,
    Flown,
    Moment,
    fellows_of,
    invocations_of,
    moments_of,
)
from analysis.diagnosis.pages import PageHistory, histories_of, pages_of
from analysis.runs.tables import broken_json

if TYPE_CHECKING:
    from analysis.runs.store import Run


@dataclass(frozen=True)
class Explanation:
    """Why one request of a run failed; as data; `str` gives it as text."""

    request_id: str
    trial_id: str
    outcome: str
    what: str
    """How it ended, in a sentence."""
    because: tuple[str, ...]
    """Why, in sentences, as far as what was recorded tells it."""
    request: Mapping[str, Any]
    """Its row of the table `requests`; what is missing is None."""
    trial: Mapping[str, Any]
    """Its trial's row of `trials`."""
    moments: tuple[Moment, ...]
    invocations: tuple[Flown, ...]
    fellows: tuple[Fellow, ...]
    finding: Found | None
    """The first finding of wrong data on it; failing that, the first one at risk."""
    findings: tuple[Found, ...]
    """The first finding of each kind on it, in order."""
    death: Death | None
    """How the engine died, if it did."""
    pages: tuple[PageHistory, ...]
    """The page of the finding first, then its own in the order of its block table."""
    caches: Caches
    divergence: Divergence | None
    lacking: tuple[str, ...]
    """What cannot be said for want of a record, in sentences."""
    begin: int
    """Its first place among the events."""
    end: int
    """Its last one."""
    case: Case
    """What it was made from."""

    @property
    def pool(self) -> tuple[Pool, ...]:
        """How many pages were in which state, from the first snapshot to its end."""
        return pool_until(self.case, self.end)

    def __str__(self) -> str:
        from analysis.diagnosis.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"<Explanation: {self.what}>"


@broken_json("What was recorded of the run")
def explain(
    run: Run, request_id: str, trial_id: str | None = None, *, reference: bool = True
) -> Explanation:
    """Explain why a request of a run failed, from what was recorded of it.

    `trial_id` says of which trial, where several have a request of that name. `reference` asks the
    reference decoder what it gives for the first wrong token, in a child process of the release.
    What was not recorded is said to be missing. Raises RunError if there is no such request or
    trial, or more than one.
    """
    case = case_of(run, request_id, trial_id)
    flown = invocations_of(case)
    finding, findings = first_finding(case), findings_of(case)
    death = death_of(case)
    histories = histories_of(
        case, pages_of(case, flown, [None if finding is None else finding.page])
    )
    divergence = divergence_of(case, flown, reference=reference)
    caches = caches_of(case)
    begin, end = _span(case, flown)
    return Explanation(
        request_id=case.name,
        trial_id=str(case.trial["trial_id"]),
        outcome=case.outcome,
        what=what_of(case, divergence),
        because=because(case, flown, findings, finding, divergence, death, histories),
        request=case.request,
        trial=case.trial,
        moments=moments_of(case, flown),
        invocations=flown,
        fellows=fellows_of(case, flown),
        finding=finding,
        findings=findings,
        death=death,
        pages=histories,
        caches=caches,
        divergence=divergence,
        lacking=_lacking(case, flown, caches, divergence),
        begin=begin,
        end=end,
        case=case,
    )


def _span(case: Case, flown: tuple[Flown, ...]) -> tuple[int, int]:
    sent, ended = case.seq_of("submitted"), case.seq_of("done")
    last = int(case.events["seq"].max()) if len(case.events) else 0
    if sent is None:
        sent = next((f.seq for f in flown if f.seq is not None), 0)
    return sent, ended if ended is not None else max(last, sent)


def _lacking(
    case: Case, flown: tuple[Flown, ...], caches: Caches, divergence: Divergence | None
) -> tuple[str, ...]:
    said = []
    if not case.recorded:
        said.append(
            "Nothing was recorded of this trial: sweep with --sanitize or --observe to see inside."
        )
    elif case.events.empty:
        said.append("No events were recorded, so there is no history of its pages.")
    elif case.seq_of("submitted") is None:
        said.append("The recording does not have its beginning.")
    if case.recorded and case.invocations.empty:
        said.append("No invocation was recorded in its trial.")
    elif case.recorded and not flown:
        said.append("It was in no invocation that landed.")
    if case.recorded and (caches.before is None or caches.after is None):
        said.append(caches.how)
    if case.outcome == "wrong" and divergence is None:
        had = case.request["reference_tokens"] is not None
        said.append(
            "Its tokens do not leave the reference decoder's."
            if had
            else "No reference answer was stored with it, so its first wrong token is unknown."
        )
    if case.cut is not None:
        said.append(case.cut)
    if case.trial["status_detail"] and case.trial["status"] == "ok":
        said.append(str(case.trial["status_detail"]))
    return (*said, *(divergence.lacking if divergence is not None else ()))
