"""Findings: broken rules, the first of each kind in full and the rest counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.core.wording import counted
from analysis.recording.stacks import stack_in_words
from analysis.runs.tables import to_frame
from analysis.sanitizer.unchecked import Unchecked

if TYPE_CHECKING:
    from analysis.sanitizer.scene import Scene

WRONG_DATA = "wrong data"
"""The model computed with keys and values that are not the request's own."""
AT_RISK = "at risk"
"""A rule is broken, and no wrong data was read by it yet."""
SEVERITIES = (WRONG_DATA, AT_RISK)
"""From the worst on."""
_MEMBERS = 10_000


@dataclass(slots=True)
class Finding:
    """One broken rule at the step that broke it."""

    cause: str
    """What kind of breach, in a few words; findings of one rule and cause are one group."""
    message: str | Callable[[], str]
    """What happened, in one sentence; put into words only if it is shown."""
    request_id: str | None = None
    """The request that suffers."""
    other_request_id: str | None = None
    """The request whose data or page it met, or that did it."""
    page: int | None = None
    slot: int | None = None
    """Slot within the page."""
    severity: str = AT_RISK
    other_stack: str | None = None
    """Where the other one was in the engine's code."""
    # What follows is filled in by the checker.
    rule: str = ""
    sentence: str = ""
    """What must always hold."""
    seq: int | None = None
    """Its place among the events."""
    invocation_id: int | None = None
    operation: str | None = None
    t_s: float | None = None
    """Seconds since the engine started."""
    thread: str | None = None
    stack: str | None = None
    """Where in the engine's code."""
    scene: Scene | None = None
    """What it looked like; only of the first of its group."""

    @property
    def text(self) -> str:
        """The message."""
        if not isinstance(self.message, str):
            self.message = self.message()
        return self.message

    @property
    def at(self) -> str:
        """At which step, in words."""
        parts = [] if self.invocation_id is None else [f"invocation {self.invocation_id}"]
        parts += [] if self.seq is None else [f"event {self.seq}"]
        parts += [] if self.t_s is None else [f"{self.t_s:.3f} s"]
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"[{self.rule}] {self.text} ({self.at})"


@dataclass
class Group:
    """Findings of one rule and one cause; the first leads."""

    first: Finding
    count: int = 0
    """How often it was found altogether."""
    by_request: dict[str | None, Finding] = field(default_factory=dict)
    """The first of each request, in order."""
    counts: dict[str | None, int] = field(default_factory=dict)
    """How often it was found for each of these requests."""

    @property
    def rule(self) -> str:
        """The broken rule."""
        return self.first.rule

    @property
    def cause(self) -> str:
        """In which way it was broken."""
        return self.first.cause

    @property
    def severity(self) -> str:
        """Wrong data if any of them read some."""
        return worst(finding.severity for finding in self.by_request.values())


def worst(severities: Iterable[str]) -> str:
    """Return the worst of some severities. Raises ValueError for none, or for one not known."""
    return SEVERITIES[min(map(SEVERITIES.index, severities))]


class Findings:
    """What a sanitizer found: groups in the order in which they began.

    While the engine is still being watched it grows. `len` counts groups; iterating gives the
    first finding of each.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Group] = {}
        self.notes: list[str] = []
        """What could not be checked, in sentences."""
        self.blind: list[str] = []
        """What cannot be seen on this release, in sentences that begin with the rule."""
        self.bytes_checked = ""
        """How far the bytes of pages were checked, in a sentence; empty if they were not."""
        self.unchecked = Unchecked()
        """Invocations that could not be checked, or only in part."""
        self.waits: str | None = None
        """What the live check waits for at this moment, in a sentence."""
        self.invocations = 0
        """Invocations that were checked."""
        self.events = 0
        """Events that were checked."""
        self.slots_read = 0
        """Slots read by real rows of those invocations."""
        self.rewritten = 0
        """Slots of shared pages that were written again with what they held."""

    def add(self, finding: Finding) -> bool:
        """Count a finding; keep it if it is the first of its cause for its request.

        Returns whether a new group began with it.
        """
        group = self._groups.get((finding.rule, finding.cause))
        if group is None:
            group = self._groups[finding.rule, finding.cause] = Group(finding)
        group.count += 1
        request = finding.request_id
        if request in group.by_request:
            group.counts[request] += 1
        elif len(group.by_request) < _MEMBERS:
            group.counts[request] = 1
            finding.message = finding.text
            finding.stack = stack_in_words(finding.stack)
            finding.other_stack = stack_in_words(finding.other_stack)
            group.by_request[request] = finding
        return group.first is finding

    def note(self, sentence: str) -> None:
        """Say once what could not be checked."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def complete(self) -> bool:
        """Whether all that was recorded was checked, by every rule."""
        return not (self.unchecked or self.notes or self.waits)

    @property
    def not_checked(self) -> list[str]:
        """What was not checked, in sentences; [] if all was."""
        counted = [f"Unchecked: {self.unchecked}."] if self.unchecked else []
        return [*counted, *self.notes, *([self.waits] if self.waits else [])]

    @property
    def groups(self) -> list[Group]:
        """All groups, the one that began first first."""
        return list(self._groups.values())

    @property
    def first(self) -> Finding | None:
        """The very first finding."""
        return min(self, key=_order, default=None)

    @property
    def first_wrong_data(self) -> Finding | None:
        """The first finding at which wrong data was read."""
        found = (f for g in self.groups for f in g.by_request.values())
        return min((f for f in found if f.severity == WRONG_DATA), key=_order, default=None)

    @property
    def wrong_data(self) -> list[Group]:
        """Groups in which wrong data was read."""
        return [group for group in self.groups if group.severity == WRONG_DATA]

    def group(self, rule: str, cause: str | None = None) -> Group | None:
        """Return the first group of a rule, None if it was not broken (in that way)."""
        for (name, why), group in self._groups.items():
            if name == rule and cause in (None, why):
                return group
        return None

    def of(self, request_id: str) -> list[Finding]:
        """Return the first finding of every cause for a request, in order."""
        found = [g.by_request[request_id] for g in self.groups if request_id in g.by_request]
        return sorted(found, key=_order)

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Finding]:
        return (group.first for group in self.groups)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def rows(self, trial_id: str = "") -> list[dict[str, Any]]:
        """Return rows of the table `findings`: the first of each cause for each request."""
        rows = []
        for group in self.groups:
            for request, finding in group.by_request.items():
                rows.append(
                    {
                        "finding_id": "",
                        "trial_id": trial_id,
                        "rule": finding.rule,
                        "cause": finding.cause,
                        "severity": finding.severity,
                        "seq": finding.seq,
                        "t_s": finding.t_s,
                        "request_id": request,
                        "other_request_id": finding.other_request_id,
                        "page": finding.page,
                        "slot": finding.slot,
                        "invocation_id": finding.invocation_id,
                        "count": group.counts[request],
                        "message": finding.text,
                        "thread": finding.thread,
                        "stack": finding.stack,
                        "other_stack": finding.other_stack,
                    }
                )
        rows.sort(key=lambda row: row["seq"] if row["seq"] is not None else -1)
        return [{**row, "finding_id": f"{i:04d}"} for i, row in enumerate(rows)]

    def frame(self, trial_id: str = "") -> pd.DataFrame:
        """Return the table `findings`."""
        return to_frame("findings", self.rows(trial_id))

    @property
    def summary(self) -> str:
        """What was checked and how much was found, in a sentence."""
        checked = (
            f"{counted(self.invocations, 'invocation')} and {counted(self.events, 'event')} checked"
        )
        if self.unchecked:
            checked += f"; unchecked: {self.unchecked}"
        if not self:
            where = "" if self.complete else " in what was checked"
            return f"No rule was broken{where} ({checked})."
        total = sum(group.count for group in self.groups)
        wrong = len(self.wrong_data)
        return (
            f"{counted(total, 'finding')} of {counted(len(self), 'cause')}, {wrong} of them with"
            f" wrong data read ({checked})."
        )

    def __str__(self) -> str:
        lines = [self.summary]
        for group in sorted(self.groups, key=lambda g: _order(g.first)):
            first, requests = group.first, len(group.by_request)
            lines += ["", f"{group.severity}: {first.rule} ({first.cause})"]
            lines.append(f"  {first.text}")
            lines.append(f"  at {first.at}; {_times(group.count, requests)}")
            lines += [f"    {line}" for line in (first.stack or "").splitlines()[-3:]]
            if first.other_stack:
                lines.append("  and the other one:")
                lines += [f"    {line}" for line in first.other_stack.splitlines()[-3:]]
        lines += [f"\n{self.bytes_checked}"] if self.bytes_checked else []
        lines += [f"\nNot checked: {note}" for note in self.not_checked]
        lines += [f"\nNot seen on this release: {spot}" for spot in self.blind]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Findings: {self.summary}>"


def _order(finding: Finding) -> int:
    return finding.seq if finding.seq is not None else -1


def _times(count: int, requests: int) -> str:
    often = "once" if count == 1 else f"{count} times"
    return often if requests <= 1 else f"{often} in {requests} requests"
