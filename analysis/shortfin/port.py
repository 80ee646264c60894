"""Data exchanged between a server and the rest of the package, and the observer interface.

The classes behind it: the server is `service/common.py: Service`, the probe of its cache
`cache/probe.py: BaseProbe`, a cache without a server `standalone.py`, and a request on such a cache
`cache/driver.py`.
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
    """All resolved settings to build an engine."""

    name: str
    """Prefix of the names of the engine's workers, unique in the process."""
    config: EngineConfig
    model: ModelArtifacts
    vmfb: Path
    device: str


@dataclass(frozen=True)
class Answer:
    """The engine's answer to a request. `error` is None unless it was rejected or failed."""

    tokens: tuple[int, ...] | None = None
    """The tokens in the engine's response; None to use the tokens that arrived."""
    beams: tuple[tuple[int, ...], ...] = ()
    """The tokens of every beam, if the engine searched with several; `tokens` is the first."""
    text: str | None = None
    """The text in the engine's response, if it has text instead of tokens."""
    refused: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Call:
    """One request to be sent; the callbacks may be called on any thread of the engine."""

    request_id: str
    text: str | None
    """The prompt as text, for the engine's tokenizer; None to send `token_ids`."""
    token_ids: tuple[int, ...]
    max_new_tokens: int
    on_token: Callable[[int | None], None]
    """Called when a token arrived; None if the token is unknown."""
    on_end: Callable[[Answer], None]


class CacheObserver(Protocol):
    """Receives the operations of a cache, on the engine's threads."""

    locks: Locks | None
    """The locks that the current thread holds; set by the probe."""
    check_contents: bool
    """Whether to search pages for NaN and infinity, and to compare copies."""
    likeliest: int
    """Number of most likely next tokens to record for each row of an invocation."""
    verifies: bool
    """Whether to check that arguments do not change, and to follow results."""

    def begin(self, operation: str | None, request_id: str | None) -> None:
        """Begin an operation of the cache on this thread; unnamed operations only group others."""

    def end(self, error: BaseException | None) -> None:
        """End the last operation that began on this thread."""

    def mark(self) -> Any:
        """Return a value that is equal until an operation begins; None during an operation."""

    def snapshot(self, moment: str, request_id: str | None, timeout_s: float) -> Snapshot:
        """Take and record a snapshot of the cache between two operations."""

    def reserve(self) -> tuple[int, int]:
        """Reserve and return a sequence number and the time, for a later event."""

    def unused(self, place: tuple[int, int]) -> None:
        """Release a reserved sequence number."""

    def event(self, kind: str, **fields: Any) -> None:
        """Record an event: fields are columns of the table `events`, or `place` from `reserve`."""

    def at_token(
        self, kind: str, request_id: str, value: int | None, digest: int | bytes | None
    ) -> None:
        """Record an event that occurs at every token; bytes are logits."""

    def holds(self, request_id: str, pages: Iterable[int]) -> None:
        """Record all pages that a request holds now."""

    def invocation_begins(self, phase: str, request_ids: list[str]) -> Any:
        """Begin an invocation; the result is passed to `invocation_ends`."""

    def invocation_unseen(self) -> None:
        """Record the start of an invocation for which `invocation_begins` failed."""

    def invocation_ends(
        self, invocation: Any, arrays: dict[str, Any], error: BaseException | None
    ) -> None:
        """End an invocation; `arrays` are its arguments by name, each as shape and flat values.

        `scores` are the `Scores` of its results, if `likeliest` is set. If `verifies` is set,
        `results` are `Scores`, or tokens and digests, and `changed` has the changed arguments.
        """

    def fault(self, error: Exception) -> None:
        """Record an error of the observation. Must not raise."""
