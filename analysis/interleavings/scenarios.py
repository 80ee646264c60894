"""Scenarios: a few requests on a small pool. Schedules: the order of their operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.core.errors import CachelabError
from analysis.shortfin.cache.driver import Request

STRIDE = 2
"""Tokens a page; the engine uses 16. The caches work with any value."""


class IsolationError(CachelabError):
    """A scenario or a schedule is unknown or cannot be run."""


@dataclass(frozen=True)
class Scenario:
    """Workers that each run a request on one cache, after the requests `before` have ended."""

    name: str
    sentence: str
    """Description in a sentence."""
    pages: int
    """Pages in the pool, if a decode takes one page at a time."""
    workers: tuple[Request, ...]
    before: tuple[Request, ...] = ()
    reserved: int = 0
    """Pages held by inactive requests."""
    sharing: tuple[str, ...] = ("trie",)
    """Modes of prefix sharing that it is for."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests, those of `before` first."""
        return (*self.before, *self.workers)


def _run(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


_BOTH = ("none", "trie")
_ALL = (
    Scenario(
        "equal prompts",
        "Two requests with the same prompt run at the same time.",
        6,
        (Request("A", _run(1, 5)), Request("B", _run(1, 5))),
        sharing=_BOTH,
    ),
    Scenario(
        "equal prompts, whole pages",
        "Two requests with the same prompt, which fills whole pages, and an answer.",
        8,
        (Request("A", _run(1, 4), 1), Request("B", _run(1, 4), 1)),
        sharing=_BOTH,
    ),
    Scenario(
        "equal prompts, then eviction",
        "Two equal prompts at the same time, and a third that needs their cached pages.",
        7,
        (Request("A", _run(1, 5)), Request("B", _run(1, 5)), Request("C", _run(20, 10))),
    ),
    Scenario(
        "answers that enter a page",
        "Two requests decode into new pages.",
        10,
        (Request("A", _run(1, 3), 4), Request("B", _run(20, 3), 2)),
        sharing=_BOTH,
    ),
    Scenario(
        "a long answer in freed pages",
        "A prompt was answered twice; a long answer reuses the pages of the duplicates.",
        16,
        (Request("A", _run(20, 1), 13), Request("B", _run(40, 1))),
        before=(Request("W", _run(1, 4), 4), Request("X", _run(1, 4), 4)),
    ),
    Scenario(
        "shared prefix under eviction",
        "Two requests share a cached prefix, and the other cached pages must be evicted.",
        7,
        (Request("A", (*_run(1, 4), 11, 12, 13)), Request("B", (*_run(1, 4), 21, 22, 23))),
        before=(Request("W", (*_run(1, 4), 31, 32)),),
    ),
    Scenario(
        "lookup, evict, allocate",
        "One request finds a cached prefix, another one evicts pages.",
        6,
        (Request("B", (*_run(1, 6), 11, 12)), Request("C", _run(20, 8))),
        before=(Request("W", _run(1, 8)),),
    ),
    Scenario(
        "evicting one's own prefix",
        "A prompt needs nearly all pages, and another request holds one of them.",
        8,
        (Request("B", (*_run(1, 6), *_run(11, 10))), Request("C", _run(20, 1))),
        before=(Request("W", _run(1, 8)),),
        reserved=1,
    ),
    Scenario(
        "evicting what has children",
        "One request continues a cached prefix, and another one needs pages.",
        6,
        (Request("B", (*_run(1, 4), *_run(11, 4))), Request("C", _run(20, 5))),
        before=(Request("W", _run(1, 4)),),
    ),
    Scenario(
        "published beneath",
        "A request publishes below another one's node, then a third needs pages.",
        6,
        (Request("A", _run(1, 4)), Request("B", (*_run(1, 4), 11, 12)), Request("C", _run(20, 6))),
    ),
    Scenario(
        "short of pages",
        "Three prompts with pages for two.",
        5,
        (Request("A", _run(1, 4)), Request("B", _run(20, 4)), Request("C", _run(1, 4))),
        sharing=_BOTH,
    ),
    Scenario(
        "churn",
        "Four workers with short prompts, two of them equal, with pages for three.",
        4,
        (
            Request("A", _run(1, 2)),
            Request("B", _run(1, 2)),
            Request("C", _run(1, 3)),
            Request("D", _run(20, 2)),
        ),
        sharing=_BOTH,
    ),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
"""By name."""


@dataclass(frozen=True)
class Step:
    """One operation of the cache, by one request."""

    request: str
    operation: str

    def __str__(self) -> str:
        return f"{self.request}.{self.operation}"


@dataclass(frozen=True)
class Schedule:
    """Operations of requests, one after another."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.steps))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def switches(self) -> int:
        """Number of steps that belong to another request than the previous step."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return sum(one.request != other.request for one, other in pairs)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Parse the text of `str`, such as `A.lookup B.lookup`; raises IsolationError."""
        steps = []
        for word in text.split():
            request, dot, operation = word.partition(".")
            if not (request and dot and operation):
                raise IsolationError(
                    f"{word!r} is not a step of a schedule. A step is a request and an operation,"
                    " such as A.acquire."
                )
            steps.append(Step(request, operation))
        return cls(tuple(steps))


def select(names: Iterable[str] | None, prefix_sharing: str, workers: Iterable[int]) -> list[str]:
    """Return the named scenarios, or all that are meant for this. Raises IsolationError."""
    if names is not None:
        for name in (names := list(names)):
            if name not in SCENARIOS:
                raise IsolationError(
                    f"Unknown scenario {name!r}. Known are {', '.join(SCENARIOS)}."
                )
        return names
    sizes = set(workers)
    return [
        name
        for name, scenario in SCENARIOS.items()
        if prefix_sharing in scenario.sharing and len(scenario.workers) in sizes
    ]
