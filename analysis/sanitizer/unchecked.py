"""What a sanitizer did not check: how many invocations, of which requests, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from analysis.core.wording import counted

_SHOWN, _MOST_NAMED = 6, 100_000


class Unchecked:
    """Invocations that no rule or not every rule could be asked of; false if there is none."""

    def __init__(self) -> None:
        self.invocations = 0
        self.requests: Counter[str] = Counter()
        """Unchecked invocations of each request, the first 100,000 requests; all are counted."""
        self.reasons: Counter[str] = Counter()
        """Unchecked invocations by what kept them from being checked."""

    def add(self, reason: str, request_ids: Iterable[str] = (), count: int = 1) -> None:
        """Count invocations of these requests."""
        self.invocations += count
        self.reasons[reason] += count
        for request_id in request_ids:
            if request_id in self.requests or len(self.requests) < _MOST_NAMED:
                self.requests[request_id] += count

    def update(self, other: Unchecked, trial_id: str = "") -> None:
        """Add what was not checked of another engine; its requests are named with their trial."""
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
        reasons = [f"{reason} ({count})" for reason, count in self.reasons.most_common()]
        number = counted(self.invocations, "invocation")
        return f"{number}{' of ' + ', '.join(named) if named else ''}: {'; '.join(reasons)}"

    def __repr__(self) -> str:
        return f"<Unchecked: {self}>"
