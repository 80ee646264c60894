"""How a request failed: what must be the same when it fails again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.core.errors import RunError
from analysis.core.wording import finding_name, listed
from analysis.diagnosis.evidence import LEAK, findings_of, first_finding
from analysis.diagnosis.request_trace import RequestTrace
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.shortfin.script import FROZEN, OUTCOMES
from analysis.sweep.rows import Ended

_REFUSED = ("rejected", "error")


@dataclass(frozen=True)
class Symptom:
    """An outcome, with the finding that came with it; None if the run was not sanitized."""

    outcome: str
    """A request's outcome, or FROZEN if the whole process stood still."""
    finding: str | None = None
    """Name of a kind of findings, such as "page-leak (dropped)"."""
    rule: str | None = None
    own: bool = True
    """Whether the finding must be about the failed request itself."""
    code: str | None = None
    """The engine's code for a refusal, such as QUEUE_FULL."""

    def with_finding(self, findings: Sequence[Mapping[str, Any]], request_id: str) -> Symptom:
        """Return this with the first finding about a request, wrong data before others."""
        own = [row for row in findings if row["request_id"] == request_id]
        own.sort(key=lambda row: row["severity"] != WRONG_DATA)
        if not own or self.outcome == FROZEN:
            return self
        return replace(
            self, finding=finding_name(own[0]["rule"], own[0]["cause"]), rule=own[0]["rule"]
        )

    @property
    def leaks(self) -> bool:
        """Whether pages are lost, which shows without the sanitizer, too."""
        return self.rule == LEAK

    @property
    def title(self) -> str:
        """The failure in one line."""
        code = f" with {self.code}" if self.code else ""
        found = f": {self.finding}" if self.finding else ""
        return f"{OUTCOMES[self.outcome]}{code}{found}"

    def shown_by(
        self,
        rows: Sequence[Mapping[str, Any]],
        findings: Sequence[Mapping[str, Any]],
        frozen: bool,
    ) -> str | None:
        """Return the first request of a trial that failed in this way; None if none did.

        `rows` and `findings` are rows of these tables; `frozen` is whether the process was killed
        because it hung.
        """
        found = {
            row["request_id"] if self.own else None
            for row in findings
            if self.finding == finding_name(row["rule"], row["cause"])
        }
        for row in rows:
            ended = FROZEN if frozen and _unanswered(row) else row["outcome"]
            named = row["request_id"] if self.own else None
            if (
                ended == self.outcome
                and (self.finding is None or named in found)
                and self.code in (None, code_of(row["error"]))
            ):
                return str(row["request_id"])
        return None


def symptom_of(trace: RequestTrace, finding: str | None = None) -> Symptom:
    """Return how a request failed; `finding` chooses another finding of it than the first.

    Raises RunError if it did not fail in a way that can be shown again.
    """
    own = findings_of(trace)
    chosen = first_finding(trace, own)
    if finding is not None:
        names = {finding_name(one.rule, one.cause): one for one in own}
        if finding not in names:
            raise RunError(
                f"{trace.name} has no finding {finding!r}. It has {listed(names) or 'none'}."
            )
        chosen = names[finding]
    outcome = trace.outcome
    if is_frozen(trace.trial["status"], trace.trial["exit_signal"]) and _unanswered(trace.request):
        outcome = FROZEN
    code = code_of(trace.request["error"]) if outcome in _REFUSED else None
    if chosen is None and outcome == "rejected":  # for want of pages that others lost
        leaks = trace.findings[trace.findings["rule"] == LEAK]
        name = None if leaks.empty else finding_name(LEAK, leaks["cause"].iloc[0])
        if name is None:
            raise RunError(
                f"{trace.name} was rejected, and no page was lost before. Choose a failed request."
            )
        return Symptom(outcome, name, LEAK, own=False, code=code)
    if outcome == "ok" and (chosen is None or chosen.rule != LEAK):
        raise RunError(
            f"{trace.name} was answered right, and a script cannot show"
            f" {_named(chosen) or 'a finding that it does not have'}. Choose a failed request."
        )
    return Symptom(outcome, _named(chosen), chosen.rule if chosen else None, code=code)


def _unanswered(row: Mapping[str, Any]) -> bool:
    """Return whether not even the client's deadline passed before the process was killed."""
    return row["outcome"] == "timeout" and row["latency_s"] is None


def is_frozen(status: object, exit_signal: object) -> bool:
    """Return whether a trial was killed because its process stood still."""
    return status == "hung" and exit_signal is not None


def has_frozen(ended: Ended) -> bool:
    """Return the same for a trial that has just ended."""
    return is_frozen(ended.status, ended.exit_signal)


def code_of(error: str | None) -> str | None:
    """Return the engine's code at the start of an error, as the services put it there."""
    code = (error or "").partition(":")[0]
    return code if code.isupper() and code.isidentifier() else None


def _named(finding: Finding | None) -> str | None:
    return None if finding is None else finding_name(finding.rule, finding.cause)
