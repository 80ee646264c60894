"""Blocks that can also be started and stopped, and so last over several cells of a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Span(AbstractContextManager[T], Generic[T]):
    """A context manager with `start()` and `stop()` in place of the block."""

    def __init__(self, block: AbstractContextManager[T, bool | None]) -> None:
        self._block = block

    def start(self) -> T:
        """Begin, and return what the block yields. Raises what the block raises."""
        return self._block.__enter__()

    def stop(self) -> None:
        """End. Raises what the end of the block raises."""
        self._block.__exit__(None, None, None)

    __enter__ = start

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._block.__exit__(kind, error, traceback)


def spanning(function: Callable[P, Iterator[T]]) -> Callable[P, Span[T]]:
    """Make a generator function with one `yield` a `Span`, as `contextmanager` does."""
    block = contextmanager(function)

    @wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> Span[T]:
        return Span(block(*args, **options))

    return make
