"""Scenarios: a few requests on a small pool. Schedules: the order of their operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.core.errors import CachelabError
from analysis.shortfin.cache.driver import Request

STRIDE = 2
"""Tokens a page; the engine has 16. Nothing in the caches depends on it."""


class IsolationError(CachelabError):
    """A scenario or a schedule is unknown, or cannot be carried out."""


@dataclass(frozen=True)
class Scenario:
    """Workers that each carry out a request on one cache; `before` has ended when they begin."""

    name: str
    sentence: str
    """What is tried."""
    pages: int
    """Pages in the pool, if a decoding request takes one at a time."""
    workers: tuple[Request, ...]
    before: tuple[Request, ...] = ()
    reserved: int = 0
    """Pages held by requests that do nothing meanwhile."""
    sharing: tuple[str, ...] = ("trie",)
    """Ways of prefix sharing for which it is meant."""

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
        "Two requests with the same prompt are under way at once.",
        6,
        (Request("A", _run(1, 5)), Request("B", _run(1, 5))),
        sharing=_BOTH,
    ),
    Scenario(
        "equal prompts, whole pages",
        "Two requests with the same prompt, which fills its pages, and an answer.",
        8,
        (Request("A", _run(1, 4), 1), Request("B", _run(1, 4), 1)),
        sharing=_BOTH,
    ),
    Scenario(
        "equal prompts, then eviction",
        "Two equal prompts at once, and a third that needs what is cached of them.",
        7,
        (Request("A", _run(1, 5)), Request("B", _run(1, 5)), Request("C", _run(20, 10))),
    ),
    Scenario(
        "answers that enter a page",
        "Two requests decode into pages that their prompts had no room in.",
        10,
        (Request("A", _run(1, 3), 4), Request("B", _run(20, 3), 2)),
        sharing=_BOTH,
    ),
    Scenario(
        "a long answer in freed pages",
        "A prompt was answered twice; a long answer is written where the duplicates were.",
        16,
        (Request("A", _run(20, 1), 13), Request("B", _run(40, 1))),
        before=(Request("W", _run(1, 4), 4), Request("X", _run(1, 4), 4)),
    ),
    Scenario(
        "shared prefix under eviction",
        "Two requests that share a cached prefix, and a pool that must evict the rest.",
        7,
        (Request("A", (*_run(1, 4), 11, 12, 13)), Request("B", (*_run(1, 4), 21, 22, 23))),
        before=(Request("W", (*_run(1, 4), 31, 32)),),
    ),
    Scenario(
        "lookup, evict, allocate",
        "One request finds a cached prefix, another evicts to make room for itself.",
        6,
        (Request("B", (*_run(1, 6), 11, 12)), Request("C", _run(20, 8))),
        before=(Request("W", _run(1, 8)),),
    ),
    Scenario(
        "evicting one's own prefix",
        "A prompt that needs nearly all pages, one of which another request holds.",
        8,
        (Request("B", (*_run(1, 6), *_run(11, 10))), Request("C", _run(20, 1))),
        before=(Request("W", _run(1, 8)),),
        reserved=1,
    ),
    Scenario(
        "evicting what has children",
        "One request goes on from a cached prefix, and another needs pages meanwhile.",
        6,
        (Request("B", (*_run(1, 4), *_run(11, 4))), Request("C", _run(20, 5))),
        before=(Request("W", _run(1, 4)),),
    ),
    Scenario(
        "published beneath",
        "A request publishes below a node that another one published, then a third needs pages.",
        6,
        (Request("A", _run(1, 4)), Request("B", (*_run(1, 4), 11, 12)), Request("C", _run(20, 6))),
    ),
    Scenario(
        "short of pages",
        "Three prompts, and pages for two.",
        5,
        (Request("A", _run(1, 4)), Request("B", _run(20, 4)), Request("C", _run(1, 4))),
        sharing=_BOTH,
    ),
    Scenario(
        "churn",
        "Four workers with short prompts, two of them equal, and pages for three.",
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
        """How often a step is another request's than the step before."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return sum(one.request != other.request for one, other in pairs)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read what `str` gives, such as `A.lookup B.lookup`; IsolationError if it cannot."""
        steps = []
        for word in text.split():
            request, dot, operation = word.partition(".")
            if not (request and dot and operation):
                raise IsolationError(
                    f"{word!r} is no step of a schedule: a step is a request and an operation, such"
                    " as A.acquire."
                )
            steps.append(Step(request, operation))
        return cls(tuple(steps))


def select(names: Iterable[str] | None, prefix_sharing: str, workers: Iterable[int]) -> list[str]:
    """Return the named scenarios, or all that are meant for this. Raises IsolationError."""
    if names is not None:
        for name in (names := list(names)):
            if name not in SCENARIOS:
                raise IsolationError(
                    f"There is no scenario {name!r}: there are {', '.join(SCENARIOS)}."
                )
        return names
    sizes = set(workers)
    return [
        name
        for name, scenario in SCENARIOS.items()
        if prefix_sharing in scenario.sharing and len(scenario.workers) in sizes
    ]
