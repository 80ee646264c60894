"""Findings: violations of rules. The first of each kind is kept in full, others are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.core.wording import counted
from analysis.recording.stacks import stack_in_words
from analysis.runs.tables import to_frame

if TYPE_CHECKING:
    import pandas as pd

WRONG_DATA = "wrong data"
"""Severity: the model computed with wrong keys, values or tokens."""
AT_RISK = "at risk"
"""Severity: a rule is violated, but no wrong data was read yet."""
SEVERITIES = (WRONG_DATA, AT_RISK)
"""Worst first."""
NOTHING_KIND, UNKNOWN_KIND, PADDING_KIND, TOKEN_KIND = "nothing", "unknown", "padding", "token"
_MEMBERS = 10_000
_SHOWN, _MOST_NAMED = 6, 100_000


@dataclass(frozen=True)
class Slot:
    """Content of one slot."""

    kind: str
    """One of nothing, unknown, padding, token."""
    request_id: str | None = None
    """Request that wrote the slot."""
    position: int = -1
    """Position of the token in that request."""
    tainted: bool = False
    """Whether the content was computed from wrong data."""


@dataclass(frozen=True)
class PageContext:
    """A page at the step of a finding."""

    page: int
    where: str
    """State of the page: free, held, cached ..."""
    before: tuple[Slot, ...]
    after: tuple[Slot, ...]
    """All slots after the step."""


@dataclass(frozen=True)
class FindingContext:
    """Pages of the requests involved; the page of the finding comes first."""

    pages: tuple[PageContext, ...]
    tables: dict[str, tuple[int, ...]]
    """Pages of each request involved: its block table in the invocation, or the pages it held."""
    lengths: dict[str, int]
    """Length of each request, in tokens."""
    reads: tuple[tuple[int, int], ...] = ()
    """Slots (page, slot) that the affected request attended to in the invocation."""


@dataclass(slots=True)
class Finding:
    """One violation of a rule, at the step that violated it."""

    cause: str
    """Code of the kind of violation; rule and cause make a group."""
    message: str | Callable[[], str]
    """What happened, in one sentence. A function is called when the message is first used."""
    request_id: str | None = None
    """The affected request."""
    other_request_id: str | None = None
    """The request that owns the data or page, or that caused the violation."""
    page: int | None = None
    slot: int | None = None
    """Slot within the page."""
    severity: str = AT_RISK
    other_stack: str | None = None
    """Stack of the other request's operation."""
    # The checker fills in the fields below.
    rule: str = ""
    sentence: str = ""
    """The rule, in one sentence."""
    seq: int | None = None
    """`seq` of the event."""
    invocation_id: int | None = None
    operation: str | None = None
    t_s: float | None = None
    """Seconds since the engine started."""
    thread: str | None = None
    stack: str | None = None
    """Stack in the engine's code."""
    context: FindingContext | None = None
    """Only for the first finding of a group."""

    @property
    def text(self) -> str:
        """The message."""
        if not isinstance(self.message, str):
            self.message = self.message()
        return self.message

    @property
    def at(self) -> str:
        """The step: invocation, event and time."""
        parts = [] if self.invocation_id is None else [f"invocation {self.invocation_id}"]
        parts += [] if self.seq is None else [f"event {self.seq}"]
        parts += [] if self.t_s is None else [f"{self.t_s:.3f} s"]
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"[{self.rule}] {self.text} ({self.at})"


@dataclass
class Group:
    """Findings of one rule and one cause."""

    first: Finding
    count: int = 0
    """All findings of the group."""
    by_request: dict[str | None, Finding] = field(default_factory=dict)
    """The first of each request, in order."""
    counts: dict[str | None, int] = field(default_factory=dict)
    """Number of findings of each of these requests."""

    @property
    def rule(self) -> str:
        """Code of the violated rule."""
        return self.first.rule

    @property
    def cause(self) -> str:
        """Code of the kind of violation."""
        return self.first.cause

    @property
    def severity(self) -> str:
        """Wrong data if any finding has it, else at risk."""
        return worst(finding.severity for finding in self.by_request.values())


def worst(severities: Iterable[str]) -> str:
    """Return the worst severity. Raises ValueError for an empty list or an unknown severity."""
    return SEVERITIES[min(map(SEVERITIES.index, severities))]


class Unchecked:
    """Invocations that were not checked by every rule; false if there are none."""

    def __init__(self) -> None:
        self.invocations = 0
        self.requests: Counter[str] = Counter()
        """Number of unchecked invocations of each request (at most 100,000 requests)."""
        self.reasons: Counter[str] = Counter()
        """Number of unchecked invocations by reason."""

    def add(self, reason: str, request_ids: Iterable[str] = (), count: int = 1) -> None:
        """Count invocations of these requests."""
        self.invocations += count
        self.reasons[reason] += count
        for request_id in request_ids:
            if request_id in self.requests or len(self.requests) < _MOST_NAMED:
                self.requests[request_id] += count

    def update(self, other: Unchecked, trial_id: str = "") -> None:
        """Add the counts of another engine, with `trial_id` before its requests."""
        self.invocations += other.invocations
        self.reasons.update(other.reasons)
        prefix = f"{trial_id}/" if trial_id else ""
        self.requests.update({f"{prefix}{r}": count for r, count in other.requests.items()})

    def __bool__(self) -> bool:
        return self.invocations > 0

    def __str__(self) -> str:
        if not self:
            return "nothing"
        named = [f"{request} ({count})" for request, count in self.requests.most_common(_SHOWN)]
        if (more := len(self.requests) - _SHOWN) > 0:
            named.append(counted(more, "more request"))
        reasons = "; ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common())
        of = f" of {', '.join(named)}" if named else ""
        return f"{counted(self.invocations, 'invocation')}{of}: {reasons}"

    def __repr__(self) -> str:
        return f"<Unchecked: {self}>"


class Findings:
    """The findings of a sanitizer, in groups ordered by their first finding.

    Findings are added while the engine is checked. `len` is the number of groups; iterating gives
    the first finding of each group.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Group] = {}
        self.notes: list[str] = []
        """Notes on what could not be checked."""
        self.limits: dict[str, str] = {}
        """What each rule cannot detect on this release."""
        self.bytes_checked = ""
        """Which bytes of pages were checked, in a sentence; empty if none."""
        self.unchecked = Unchecked()
        self.waits: str | None = None
        """What the live check is waiting for, in a sentence."""
        self.invocations = 0
        """Checked invocations."""
        self.events = 0
        """Checked events."""
        self.slots_read = 0
        """Number of slots read by real rows of those invocations."""
        self.rewritten = 0
        """Number of slots of shared pages that were rewritten with the same content."""

    def add(self, finding: Finding) -> bool:
        """Count a finding, and keep it if it is the first of its cause for its request.

        Return whether it begins a new group.
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
        """Add a note on what could not be checked, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def complete(self) -> bool:
        """Whether every rule was checked on the whole recording."""
        return not (self.unchecked or self.notes or self.waits)

    @property
    def not_checked(self) -> list[str]:
        """What was not checked, in sentences."""
        unchecked = [f"Unchecked: {self.unchecked}."] if self.unchecked else []
        return [*unchecked, *self.notes, *([self.waits] if self.waits else [])]

    @property
    def groups(self) -> list[Group]:
        """All groups, in the order in which they began."""
        return list(self._groups.values())

    @property
    def first(self) -> Finding | None:
        """The first finding."""
        return min(self, key=_order, default=None)

    @property
    def first_wrong_data(self) -> Finding | None:
        """The first finding with wrong data."""
        found = (f for g in self.groups for f in g.by_request.values())
        return min((f for f in found if f.severity == WRONG_DATA), key=_order, default=None)

    @property
    def wrong_data(self) -> list[Group]:
        """Groups with wrong data."""
        return [group for group in self.groups if group.severity == WRONG_DATA]

    def group(self, rule: str, cause: str | None = None) -> Group | None:
        """Return the first group of a rule (and cause); None without one."""
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

    def __getitem__(self, index: int) -> Finding:
        return self.groups[index].first

    def __bool__(self) -> bool:
        return bool(self._groups)

    def rows(self, trial_id: str = "") -> list[dict[str, Any]]:
        """Return the rows of the table `findings`: the first of each cause for each request."""
        copied = (
            "rule", "cause", "severity", "seq", "t_s", "request_id", "other_request_id", "page",
            "slot", "invocation_id", "thread", "stack", "other_stack",
        )  # fmt: skip
        rows = [
            {name: getattr(finding, name) for name in copied}
            | {"trial_id": trial_id, "count": group.counts[request], "message": finding.text}
            for group in self.groups
            for request, finding in group.by_request.items()
        ]
        rows.sort(key=lambda row: row["seq"] if row["seq"] is not None else -1)
        return [{"finding_id": f"{i:04d}", **row} for i, row in enumerate(rows)]

    def frame(self, trial_id: str = "") -> pd.DataFrame:
        """Return the table `findings`."""
        return to_frame("findings", self.rows(trial_id))

    @property
    def summary(self) -> str:
        """What was checked and found, in a sentence."""
        checked = (
            f"{counted(self.invocations, 'invocation')} and {counted(self.events, 'event')} checked"
        )
        if self.unchecked:
            checked += f"; unchecked: {self.unchecked}"
        if not self:
            where = "" if self.complete else " in what was checked"
            return f"No rule was broken{where} ({checked})."
        total = sum(group.count for group in self.groups)
        return (
            f"{counted(total, 'finding')} of {counted(len(self), 'cause')},"
            f" {len(self.wrong_data)} of them with wrong data ({checked})."
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
                lines.append("  the other operation:")
                lines += [f"    {line}" for line in first.other_stack.splitlines()[-3:]]
        lines += [f"\n{self.bytes_checked}"] if self.bytes_checked else []
        lines += [f"\nNot checked: {note}" for note in self.not_checked]
        lines += [f"\nLimit on this release: {rule}: {text}" for rule, text in self.limits.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Findings: {self.summary}>"


def _order(finding: Finding) -> int:
    return finding.seq if finding.seq is not None else -1


def _times(count: int, requests: int) -> str:
    often = "once" if count == 1 else f"{count} times"
    return often if requests <= 1 else f"{often} in {requests} requests"
