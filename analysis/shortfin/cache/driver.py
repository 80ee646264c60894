"""What a request is to the stage: its steps, and what it has in its hands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from analysis.interleavings.scenarios import IsolationError, Request, next_token
from analysis.shortfin.releases import row_of, supported

Fly = Callable[[list[int], list[int], int], None]
"""Called with all tokens, a block table and the first position that is written."""
Names = Callable[[list[int]], tuple[Any, ...]]


class Actor(ABC):
    """One request, carried out on a cache as the release does it."""

    block: ClassVar[int]
    """Pages that a decoding request takes at once."""
    fatal: ClassVar[bool]
    """Whether an error in one request's step ends all of them: they share one thread."""
    threads: ClassVar[str]
    """On which threads the release carries requests out, in words."""

    def __init__(self, request: Request, cache: Any, fly: Fly) -> None:
        self.name, self.cache, self._fly = request.name, cache, fly
        self.tokens: list[int] = list(request.prompt)
        self.stride: int = cache.tokens_per_page
        self.steps = self.plan(request, self.stride)
        self.position = 0
        """Steps that are done."""
        self.ended = False
        """Whether it does nothing any more, or has not begun."""
        self.failed = False

    @staticmethod
    @abstractmethod
    def plan(request: Request, stride: int) -> tuple[str, ...]:
        """Return the names of its steps."""

    @abstractmethod
    def do(self, operation: str) -> None:
        """Carry out its next step."""

    @abstractmethod
    def uses(self) -> list[int]:
        """Return its block table: pages that an invocation of it may still read or write."""

    def found(self) -> list[int]:
        """Return pages that it has found in the trie, and does not hold yet."""
        return []

    @abstractmethod
    def holds(self) -> list[int]:
        """Return the pages that it has to give back, each once."""

    @abstractmethod
    def references(self) -> tuple[int, int]:
        """Return the least and the greatest number of references that it may have to the trie."""

    @abstractmethod
    def nodes(self) -> list[Any]:
        """Return the nodes that it knows."""

    @abstractmethod
    def state(self, pages: Names, nodes: Names) -> tuple[Any, ...]:
        """Return all that its future depends on, with pages and nodes under their given names."""

    def introduce(self, probe: Any) -> None:  # noqa: B027  # where the probe sees it by itself
        """Let a probe of the cache know of this request, before its first step."""

    def take_leave(self, probe: Any) -> None:  # noqa: B027
        """Let a probe of the cache know that this request has ended."""

    def fail(self, operation: str) -> bool:
        """End it, since it gets no pages; return whether all others end with it."""
        self.failed = True
        return False

    @property
    def over(self) -> bool:
        """Whether its last step is done."""
        return self.position == len(self.steps)

    def next_token(self) -> int:
        """Return the token that the model would answer now."""
        return next_token(self.tokens)

    def fly(self, table: list[int], start: int) -> None:
        """Have the model called with its tokens from a position on."""
        self._fly(self.tokens, table, start)


def actor_of(release: str) -> type[Actor]:
    """Return how a release carries out a request; IsolationError for one without a dialect."""
    if release not in supported():
        raise IsolationError(
            f"The cache of shortfin {release} is not supported: choose one of"
            f" {', '.join(supported())}."
        )
    dialect = row_of(release).cache
    kind: type[Actor] = import_module(f"analysis.shortfin.cache.{dialect}.driver").ACTOR
    return kind
