"""Cases of rules: traces that violate a rule at a step, and near misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trace_builder import TraceBuilder

from analysis.sanitizer.findings import AT_RISK
from analysis.sanitizer.trace import Invocation

Step = Invocation | int | None
A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26)


@dataclass(frozen=True)
class Case:
    """A story that breaks a rule at the step that it returns, and the finding that it must give."""

    write: Callable[[TraceBuilder], Step]
    rule: str
    cause: str
    request: str | None = "a"
    other: str | None = None
    page: int | None = None
    slot: int | None = None
    severity: str = AT_RISK
    also: tuple[tuple[str, str], ...] = ()
    """What else is broken by it; nothing further may be."""
    close: bool = True


CASES: list[Case] = []
SILENT: list[Callable[[TraceBuilder], object]] = []


def breaks(rule: str, cause: str, **due):
    def add(write):
        CASES.append(Case(write, rule, cause, **due))
        return write

    return add


def silent(write):
    SILENT.append(write)
    return write


def begin(story: TraceBuilder, request: str, prompt: tuple[int, ...], *pages: int) -> None:
    story.submit(request, prompt)
    story.allocate(request, *pages)


def ready(story: TraceBuilder, request: str, prompt: tuple[int, ...], *pages: int) -> Invocation:
    """Have a request prefilled, with its first token."""
    begin(story, request, prompt, *pages)
    invocation = story.prefill(request)
    story.token(request, 100)
    return invocation


def place_of(story: TraceBuilder, kind: str) -> int:
    """Return the place of the last event of a kind."""
    return max(seq for seq, item in story.items if getattr(item, "kind", None) == kind)
