"""The base class of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from analysis.sanitizer.findings import AT_RISK, Finding
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.snapshots.snapshot import Snapshot


class Rule:
    """Base class: an invariant of the engine. One object checks one engine."""

    name: ClassVar[str]
    """Code of the rule."""
    sentence: ClassVar[str]
    """The invariant, in one sentence."""
    causes: ClassVar[Mapping[str, str]]
    """Consequence of each kind of violation, by its code."""
    limits: ClassVar[Mapping[str, str]] = {}
    """What the rule cannot detect, by the capability of a release; "" for all releases."""
    tolerates_gaps: ClassVar[bool] = False
    """Whether the rule can still be checked after an unknown event of the cache."""

    def __init__(self) -> None:
        self.reported: set[Any] = set()
        """Keys already reported; see `is_new`."""

    def is_new(self, *what: Any) -> bool:
        """Return whether this key was not reported before, and mark it as reported."""
        known = what in self.reported
        self.reported.add(what)
        return not known

    def invocation(self, state: EngineState, step: ShadowStep) -> Iterable[Finding] | None:
        """Check an invocation after it was executed on the shadow."""

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
    """Return a finding about a row of an invocation; `slot` is page * stride + offset."""
    if slot is not None:
        fields["page"], fields["slot"] = divmod(slot, step.state.stride)
    fields.setdefault("request_id", step.invocation.request_of(row))
    return Finding(cause, f"{step.label(row)}: {what}.", severity=severity, **fields)


def each(causes: str, consequence: str) -> dict[str, str]:
    """Return a dictionary of causes (separated by spaces) with the same consequence."""
    return dict.fromkeys(causes.split(), consequence)
