"""The base class of treatments, and helpers that change live objects reversibly."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, Protocol

from analysis.core.errors import EngineError
from analysis.core.wording import listed
from analysis.shortfin import hooks
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.locks import WatchedLock
from analysis.shortfin.releases import CAPABILITIES, RELEASES, supported

_PATIENCE_S = 2.0

Place = Literal["cache", "contents", "server"]


class LiveEngine(Protocol):
    """The parts of an engine, or of a cache without a server, that treatments need."""

    release: str
    config: EngineConfig
    service: Any
    """The `Service`, or another `LiveCache`; None if not running."""
    probe: Any
    """The `BaseProbe` of an observed engine; None if not observed."""
    changes: hooks.Changes


class Treatment(ABC):
    """A named, reversible change to a live engine.

    `name` may be followed by a colon and a parameter.
    """

    name: ClassVar[str]
    hypothesis: ClassVar[str]
    """The cause that it tests, in a sentence."""
    change: ClassVar[str]
    """What it changes, in a sentence."""
    upstream: ClassVar[str | None] = None
    """The corresponding upstream change."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Required capabilities of a release, and `trie` or `no-trie` for prefix sharing."""
    acts_on: ClassVar[Place] = "cache"
    """What it changes; only `cache` treatments work on a cache without a server."""
    takes: ClassVar[str | None] = None
    """Description of its parameter; None if it takes none."""

    page_count: int | None = None
    """Least pages that the engine must be started with; None for any number."""

    def __init__(self, parameter: str | None = None) -> None:
        if parameter is not None and self.takes is None:
            raise EngineError(f"The treatment {self.name} takes no parameter. Remove the colon.")
        self.parameter = parameter

    def __repr__(self) -> str:
        return f"<{self.label}: {self.change}>"

    @property
    def label(self) -> str:
        """Its name with its parameter, as given."""
        return self.name if self.parameter is None else f"{self.name}:{self.parameter}"

    @classmethod
    def sharings(cls) -> tuple[str, ...]:
        """Return the prefix sharing modes that it applies to."""
        if "no-trie" in cls.needs:
            return ("none",)
        return ("trie",) if "trie" in cls.needs else ("none", "trie")

    @classmethod
    def releases(cls) -> tuple[str, ...]:
        """Return the supported releases with its required capabilities."""
        return supported(*cls._capabilities())

    @classmethod
    def check(cls, release: str | None, prefix_sharing: str) -> None:
        """Raise EngineError if it does not apply to such an engine."""
        if lacks := cls._lacks(release):
            raise EngineError(
                f"The treatment {cls.name} needs the capability {listed(lacks)}"
                f" ({'; '.join(CAPABILITIES[name] for name in lacks)}), which shortfin {release}"
                f" lacks. Supported releases with it: {', '.join(cls.releases()) or 'none'}."
            )
        if prefix_sharing not in cls.sharings():
            raise EngineError(
                f"The treatment {cls.name} needs prefix sharing {listed(cls.sharings())}, but this"
                f" engine has {prefix_sharing}."
            )

    @classmethod
    def _capabilities(cls) -> frozenset[str]:
        shared = {"prefix-sharing"} if "trie" in cls.needs else set()
        return (cls.needs - {"trie", "no-trie"}) | shared

    @classmethod
    def _lacks(cls, release: str | None) -> list[str]:
        offered = next(
            (row.capabilities for row in RELEASES if row.version == release), frozenset()
        )
        return sorted(cls._capabilities() - offered)

    @classmethod
    def fits(cls, release: str | None, prefix_sharing: str) -> bool:
        """Return whether it applies to such an engine."""
        try:
            cls.check(release, prefix_sharing)
        except EngineError:
            return False
        return True

    @abstractmethod
    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Change the engine, and push its undo callbacks to the stack."""


def treatment(
    name: str,
    hypothesis: str,
    *,
    upstream: str | None = None,
    needs: Iterable[str] = (),
    acts_on: Place = "cache",
) -> Callable[[Callable[[LiveEngine, ExitStack], None]], type[Treatment]]:
    """Make a treatment of a function that changes the engine, described by its docstring."""

    def make(function: Callable[[LiveEngine, ExitStack], None]) -> type[Treatment]:
        values = {
            "__doc__": function.__doc__, "__module__": function.__module__, "name": name,
            "hypothesis": hypothesis, "change": function.__doc__, "upstream": upstream,
            "needs": frozenset(needs), "acts_on": acts_on,
            "apply": lambda self, engine, undo: function(engine, undo),
        }  # fmt: skip
        return type(function.__name__, (Treatment,), values)

    return make


def replace_attribute(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of an object or a class, and restore it at the end.

    Unlike `mock.patch.object`, this also removes hooks of other engines that ended meanwhile, if
    engines share the class.
    """
    undo.callback(hooks.replace_attribute(owner, name, value))


def replaced(
    undo: ExitStack, owner: Any, name: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace a method by the decorated function, to be restored as it was found.

    The function is called with the former method before the arguments of the call.
    """
    former = getattr(owner, name)

    def replace(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            return function(former, *args, **named)

        replace_attribute(undo, owner, name, call)
        return function

    return replace


def take_pool_lock(pool: Any) -> bool:
    """Take a pool's own lock; return False if a thread holds it for too long."""
    return bool(pool._lock.acquire(timeout=_PATIENCE_S))


def lock_for(engine: LiveEngine, undo: ExitStack, name: str) -> WatchedLock:
    """Return a named re-entrant lock that present and later observers of the engine record."""
    observer = None if engine.probe is None else engine.probe.observer
    lock = WatchedLock(threading.RLock(), name, None if observer is None else observer.locks)
    engine.service.treatment_locks.append(lock)
    undo.callback(engine.service.treatment_locks.remove, lock)
    return lock


def cache_of(engine: LiveEngine) -> Any:
    """Return the live cache."""
    return engine.service.cache
