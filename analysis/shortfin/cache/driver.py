"""Drives one request on a cache by itself, operation by operation, as its release does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

Invoke = Callable[[list[int], list[int], int], None]
"""Called with all tokens, a block table and the first position that is written."""
Names = Callable[[list[int]], tuple[Any, ...]]


@dataclass(frozen=True)
class Request:
    """A prompt, and how many tokens are decoded after the one that its prefill gives."""

    name: str
    prompt: tuple[int, ...]
    decodes: int = 0


def next_token(tokens: Iterable[int]) -> int:
    """Return the token that follows others; equal tokens have the same one, as with a model."""
    answer = 0
    for token in tokens:
        answer = (answer * 31 + token) % 9973
    return 100 + answer % 800


class RequestDriver(ABC):
    """One request that works on a cache."""

    block: ClassVar[int]
    """Pages that a decoding request takes at once."""
    fatal: ClassVar[bool]
    """Whether an error in one request's operation ends all of them: they share one thread."""
    threads: ClassVar[str]
    """On which threads the release carries requests out, in words."""

    def __init__(self, request: Request, cache: Any, invoke: Invoke) -> None:
        self.name, self.cache, self._invoke = request.name, cache, invoke
        self.tokens: list[int] = list(request.prompt)
        self.stride: int = cache.tokens_per_page
        self.operations = self.operations_of(request, self.stride)
        self.position = 0
        """Operations that are done."""
        self.failed = False

    @staticmethod
    @abstractmethod
    def operations_of(request: Request, stride: int) -> tuple[str, ...]:
        """Return the names of a request's operations, in order."""

    @abstractmethod
    def perform(self, operation: str) -> None:
        """Carry out the next operation."""

    @abstractmethod
    def block_table(self) -> list[int]:
        """Return the pages that an invocation of the request may still read or write."""

    def looked_up(self) -> list[int]:
        """Return pages that the request has found in the trie and does not hold yet."""
        return []

    @abstractmethod
    def holds(self) -> list[int]:
        """Return the pages that the request has to give back, each once."""

    @abstractmethod
    def references(self) -> tuple[int, int]:
        """Return the least and the greatest number of references to the trie that are correct."""

    @abstractmethod
    def nodes(self) -> list[Any]:
        """Return the nodes of the trie that the request refers to."""

    @abstractmethod
    def state(self, pages: Names, nodes: Names) -> tuple[Any, ...]:
        """Return all that the future depends on, with pages and nodes under their given names."""

    @abstractmethod
    def register(self, probe: Any) -> None:
        """Register the request with a probe of the cache, before its first operation."""

    def fail(self, operation: str) -> bool:
        """End the request, as it gets no pages; return whether all others end with it."""
        self.failed = True
        return False

    @property
    def over(self) -> bool:
        """Whether the last operation is done."""
        return self.position == len(self.operations)
