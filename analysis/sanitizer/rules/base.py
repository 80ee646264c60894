"""The base class of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from analysis.sanitizer.findings import AT_RISK, Finding
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.snapshots.snapshot import Snapshot


class Rule:
    """An invariant of the engine; one object checks one engine."""

    name: ClassVar[str]
    """Its code."""
    sentence: ClassVar[str]
    """What must always hold."""
    causes: ClassVar[Mapping[str, str]]
    """Codes of the ways in which it is violated, each with its consequence."""
    limits: ClassVar[Mapping[str, str]] = {}
    """What it cannot detect, by the capability of the release that is the reason; "" for all."""
    tolerates_gaps: ClassVar[bool] = False
    """Whether it can be checked although an event of the cache is unknown."""

    def __init__(self) -> None:
        self.reported: set[Any] = set()
        """What is reported once only; see `is_new`."""

    def is_new(self, *what: Any) -> bool:
        """Return whether this was not reported yet, and note that it is."""
        known = what in self.reported
        self.reported.add(what)
        return not known

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterable[Finding] | None:
        """Check an invocation that was just executed on the shadow."""

    def at_snapshot(self, state: EngineState, snapshot: Snapshot) -> Iterable[Finding] | None:
        """Check the engine's own cache between two operations."""

    def at_quiescence(self, state: EngineState, snapshot: Snapshot) -> Iterable[Finding] | None:
        """Check the engine's own cache while no request is under way."""

    def finish(self, state: EngineState) -> Iterable[Finding] | None:
        """Check the state at the end of the trace."""


def about(
    step: ShadowStep, row: int, cause: str, what: str, severity: str = AT_RISK,
    slot: int | None = None, **fields: Any,
) -> Finding:  # fmt: skip
    """Return a finding about a row of an invocation; `slot` counts through all pages."""
    if slot is not None:
        fields["page"], fields["slot"] = divmod(slot, step.state.stride)
    fields.setdefault("request_id", step.invocation.request_of(row))
    return Finding(cause, f"{step.label(row)}: {what}.", severity=severity, **fields)


def each(causes: str, consequence: str) -> dict[str, str]:
    """Return causes, separated by spaces, that have one consequence."""
    return dict.fromkeys(causes.split(), consequence)
