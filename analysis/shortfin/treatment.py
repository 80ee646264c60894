"""What a treatment is, and how it changes live objects so that they can be put back."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.core.errors import EngineError
from analysis.shortfin import hooks

if TYPE_CHECKING:
    from analysis.engine import Engine

_PATIENCE_S = 2.0


class Treatment(ABC):
    """A named, reversible change to a live engine.

    `name` may be followed by a colon and a parameter.
    """

    name: ClassVar[str]
    hypothesis: ClassVar[str]
    """What it tests, in a sentence."""
    change: ClassVar[str]
    """What it changes, in a sentence."""
    upstream: ClassVar[str | None] = None
    """The upstream change that it corresponds to."""
    releases: ClassVar[tuple[str, ...] | None] = None
    """Releases that it applies to; None for all."""
    sharing: ClassVar[str | None] = None
    """The prefix sharing that it needs, None for any."""
    fixes: ClassVar[tuple[str, ...]] = ()
    """Releases a fault of which it mends; on others, and if none, it only tries a hypothesis."""
    takes: ClassVar[str | None] = None
    """What its parameter is; None if it takes none."""
    needs: ClassVar[str] = "native.page_cache"
    """What of an engine's adapter it changes: a cache by itself has no more than its cache."""

    page_count: int | None = None
    """Pages that the engine must be started with at least; None for any."""

    def __init__(self, parameter: str | None = None) -> None:
        if parameter is not None and self.takes is None:
            raise EngineError(f"The treatment {self.name} takes no parameter, so leave the colon.")
        self.parameter = parameter

    @classmethod
    def check(cls, release: str | None, prefix_sharing: str) -> None:
        """Raise EngineError if it cannot be applied to such an engine."""
        if cls.releases is not None and release not in cls.releases:
            raise EngineError(
                f"The treatment {cls.name} applies to shortfin {', '.join(cls.releases)}, not to"
                f" {release}."
            )
        if cls.sharing not in (None, prefix_sharing):
            raise EngineError(
                f"The treatment {cls.name} needs prefix sharing {cls.sharing}: this engine has"
                f" {prefix_sharing}."
            )

    @classmethod
    def fits(cls, release: str | None, prefix_sharing: str) -> bool:
        """Tell whether it can be applied to such an engine."""
        try:
            cls.check(release, prefix_sharing)
        except EngineError:
            return False
        return True

    @abstractmethod
    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Change the engine; whatever undoes it goes onto the stack."""


def replace_attribute(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of an object or a class, to be put back as it was found."""
    undo.callback(hooks.replace_attribute(owner, name, value))


def take_pool_lock(pool: Any) -> bool:
    """Take a pool's own lock, which is held for microseconds; False if it is not to be had."""
    return bool(pool._lock.acquire(timeout=_PATIENCE_S))


def part(engine: Engine, name: str) -> Any:
    """Return a module of the engine under study, beside the one that its service comes from."""
    assert engine.service is not None
    package = type(engine.service.native).__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


def cache_of(engine: Engine) -> Any:
    """Return the live cache."""
    assert engine.service is not None
    return engine.service.native.page_cache


def allocation_kinds(engine: Engine) -> list[Any]:
    """Return the classes of the objects by which requests hold pages, where there are such."""
    names = ("BasePagedAttentionCacheAllocation", "TriePagedAttentionCacheAllocation")
    modules = [part(engine, f"kvcache.{m}_attention_cache") for m in ("base", "trie")]
    return [getattr(m, n) for m, n in zip(modules, names, strict=True) if hasattr(m, n)]


def owner_of(allocation: Any) -> Any:
    """Return the cache that an allocation was made by."""
    return getattr(allocation, "cache", None) or getattr(allocation, "_cache", None)


def nodes_below(root: Any) -> list[Any]:
    """Return all nodes of a trie but its root."""
    found: list[Any] = []
    waiting = [root]
    while waiting:
        children = list((waiting.pop().children or {}).values())
        found += children
        waiting += children
    return found
