"""What the rest of the package exchanges with a server, and what a probe reports to.

The server of any generation is `service/common.py: Service`, the probe of its cache
`cache/probe.py: BaseProbe`, a request on a cache without a server `cache/driver.py`, and the cache
without a server `standalone.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from analysis.model.artifacts import ModelArtifacts
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.locks import Locks
from analysis.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class Setup:
    """All that building an engine needs, resolved."""

    name: str
    """A prefix of the names of the engine's workers, different for every engine of a process."""
    config: EngineConfig
    model: ModelArtifacts
    vmfb: Path
    device: str


@dataclass(frozen=True)
class Answer:
    """How the engine ended a request. `error` is None unless it refused or failed it."""

    tokens: tuple[int, ...] | None = None
    """The answer's tokens where the engine's response carries them; None: those seen to arrive."""
    text: str | None = None
    """The answer's text where the engine's response carries that instead."""
    refused: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Call:
    """One request on its way in; the callbacks may be called from any of the engine's threads."""

    request_id: str
    text: str | None
    """The prompt as text, for the engine's own tokenizer; None: `token_ids` go in as they are."""
    token_ids: tuple[int, ...]
    max_new_tokens: int
    on_token: Callable[[int | None], None]
    """A token arrived; None where the engine does not show which."""
    on_end: Callable[[Answer], None]


class CacheObserver(Protocol):
    """Receives the operations of a cache, on the engine's own threads."""

    locks: Locks | None
    """Set by the probe: the locks that the current thread holds."""
    check_contents: bool
    """Whether pages are searched for NaN and infinity, and copies compared."""
    likeliest: int
    """How many of the likeliest next tokens are noted for each row of an invocation."""
    verifies: bool
    """Whether arguments are compared with what they were filled with, and results followed."""

    def begin(self, operation: str | None, request_id: str | None) -> None:
        """Begin an operation of the cache on this thread; nameless ones only group others."""

    def end(self, error: BaseException | None) -> None:
        """End the operation that was begun last on this thread."""

    def mark(self) -> Any:
        """Return what stays equal until an operation begins; None while one is under way."""

    def snapshot(self, moment: str, request_id: str | None, timeout_s: float) -> Snapshot:
        """Take a snapshot of the cache between two operations, and keep it."""

    def reserve(self) -> tuple[int, int]:
        """Return a place among the events and the time, for an event that comes later."""

    def unused(self, place: tuple[int, int]) -> None:
        """Give back a place that was reserved and is not used."""

    def event(self, kind: str, **fields: Any) -> None:
        """Record an event: fields are columns of the table `events`, or `place` from `reserve`."""

    def at_token(
        self, kind: str, request_id: str, value: int | None, digest: int | bytes | None
    ) -> None:
        """Record an event of a kind that comes with every token; bytes are logits."""

    def holds(self, request_id: str, pages: Iterable[int]) -> None:
        """Record all pages that a request holds now."""

    def invocation_begins(self, phase: str, request_ids: list[str]) -> Any:
        """Begin an invocation; the result is given to `invocation_ends`."""

    def invocation_unseen(self) -> None:
        """Record that an invocation has begun that `invocation_begins` failed on."""

    def invocation_ends(
        self, invocation: Any, arrays: dict[str, Any], error: BaseException | None
    ) -> None:
        """End an invocation; `arrays` are its arguments by name, each as its shape and flat values.

        Beside them are `scores` (the `Scores` of its results, if `likeliest`) and, if `verifies`,
        `results` (`Scores`, or tokens and digests) and `changed` (arguments that were not read as
        they were filled).
        """

    def fault(self, error: Exception) -> None:
        """Record an error in the observation itself. Must not raise."""
