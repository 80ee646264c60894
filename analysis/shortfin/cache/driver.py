"""Drives one request on a cache without a server, operation by operation, as the release does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

Invoke = Callable[[list[int], list[int], int], None]
"""Called with all tokens, a block table and the first written position."""
Names = Callable[[list[int]], tuple[Any, ...]]


@dataclass(frozen=True)
class Request:
    """A prompt, and the number of tokens decoded after the first one."""

    name: str
    prompt: tuple[int, ...]
    decodes: int = 0


def next_token(tokens: Iterable[int]) -> int:
    """Return the next token, a deterministic function of the previous ones."""
    answer = 0
    for token in tokens:
        answer = (answer * 31 + token) % 9973
    return 100 + answer % 800


class RequestDriver(ABC):
    """One request that uses a cache."""

    block: ClassVar[int]
    """Number of pages that a decode allocates at once."""
    fatal: ClassVar[bool]
    """Whether an error in one request's operation ends all requests on the shared thread."""
    threads: ClassVar[str]
    """The release's threads for requests, in words."""
    threaded: ClassVar[bool]
    """Whether requests have several threads."""

    def __init__(self, request: Request, cache: Any, invoke: Invoke) -> None:
        self.name, self.cache, self._invoke = request.name, cache, invoke
        self.tokens: list[int] = list(request.prompt)
        self.stride: int = cache.tokens_per_page
        self.operations = self.operations_of(request, self.stride)
        self.position = 0
        """Number of completed operations."""
        self.failed = False

    @staticmethod
    @abstractmethod
    def operations_of(request: Request, stride: int) -> tuple[str, ...]:
        """Return the names of a request's operations, in order."""

    @abstractmethod
    def perform(self, operation: str) -> None:
        """Run the next operation."""

    @abstractmethod
    def block_table(self) -> list[int]:
        """Return the pages that an invocation of the request may read or write."""

    def looked_up(self) -> list[int]:
        """Return pages that the request has found in the trie but does not hold yet."""
        return []

    @abstractmethod
    def holds(self) -> list[int]:
        """Return the pages that the request must release, each once."""

    @abstractmethod
    def references(self) -> tuple[int, int]:
        """Return the least and greatest correct number of its references to the trie."""

    @abstractmethod
    def nodes(self) -> list[Any]:
        """Return the nodes of the trie that the request references."""

    @abstractmethod
    def state(self, pages: Names, nodes: Names) -> tuple[Any, ...]:
        """Return the complete state of the request, with pages and nodes renamed."""

    @abstractmethod
    def register(self, probe: Any) -> None:
        """Register the request with a probe of the cache, before its first operation."""

    @classmethod
    def can_overlap(cls, first: str, second: str) -> bool:
        """Return whether these operations of two requests can run at the same time."""
        return cls.threaded

    def fail(self, operation: str) -> bool:
        """End the request, which gets no pages; return whether all others end with it."""
        self.failed = True
        return False

    @property
    def over(self) -> bool:
        """Whether all operations are completed."""
        return self.position == len(self.operations)
