"""Protocols by which the rest of the package uses shortfin.

`Service` is a server of any generation, `CacheProbe` reads and observes its cache, and
`CacheObserver` is what a probe reports to. A request on a cache without a server is in
`cache/driver.py`, the cache without a server in `standalone.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from analysis.model.artifacts import ModelArtifacts
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.locks import Locks, WatchedLock
from analysis.snapshots.snapshot import CacheState, PageContent, Snapshot


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


class CacheOwner(Protocol):
    """Gives access to one live cache, behind a server or by itself."""

    native: Any
    """The release's own service object, live and unmodified."""
    withheld: set[int]
    """Pages that a treatment keeps out of the pool; they count as free."""
    quarantined: deque[tuple[Any, bytes]]
    """Freed pages that a treatment withholds for a while, each with the digest of its bytes."""
    treatment_locks: list[WatchedLock]
    """Locks that treatments put around operations of the cache."""

    @property
    def cache(self) -> Any:
        """The release's own cache, live."""

    def component(self, name: str) -> Any:
        """Return a module of the release beside the one that its service comes from."""

    def probe(self) -> CacheProbe:
        """Return a probe of the cache; nodes keep their numbers from probe to probe."""


class Service(CacheOwner, Protocol):
    """Builds, starts and stops one server of a generation, and sends requests to it."""

    name: str
    """The setup's name, a prefix of the names of the engine's workers."""
    sysman: Any
    """The release's own system manager."""

    def __init__(self, setup: Setup) -> None:
        """Build the system and the service, without starting them."""

    def start(self) -> None:
        """Start the system, wait until its loop runs, and start the service's processes."""

    def launch(self, call: Call) -> None:
        """Send one request in; returns at once. May be called from any thread."""

    def responder_of(self, request_id: str) -> Any:
        """Return what receives the answer to a pending request, None without such a request."""

    def cancel(self, call: Call) -> None:
        """Cancel a launched request, where the generation supports that."""

    def owns(self, worker: Any) -> bool:
        """Return whether a worker belongs to this engine."""

    def request_state(self, request_id: str) -> str:
        """Return the state of a request: pending, reserved, executing, working or unknown.

        A phase may follow. pending: in a batcher's list; reserved: waits for others of its group;
        working: in no list, and its own task has not ended.
        """

    def dead_worker(self) -> str | None:
        """Describe a process of the engine that ended without an error, None while all live."""

    def has_stopped(self) -> bool:
        """Return whether all processes of a stopped service have ended.

        What a worker still waits for when its thread stops keeps the engine's memory and
        descriptors.
        """

    def stop_service(self) -> None:
        """Run the release's own service shutdown; may raise or hang."""

    def stop_system(self) -> None:
        """Stop every worker thread; may hang."""

    def serialise_invocations(self) -> Callable[[], None]:
        """Let one invocation at a time run on each fiber; return what undoes it."""

    def invocation_class(self) -> Any:
        """Return the class with a method `run` that is one invocation."""

    @property
    def edits(self) -> Any:
        """The module of the generation with changes that treatments and faults make."""


class CacheProbe(Protocol):
    """Reads the cache of one live engine and, once attached, reports its operations.

    The engine's own objects are read, never copies. Only the objects that belong to pending
    requests are noted when they are made, or found among all objects of the process.
    """

    native: Any
    """The release's own service object."""
    cache: Any
    """The release's own cache."""
    pool: Any
    """The release's own page pool."""
    observer: CacheObserver | None

    @property
    def dtype(self) -> str:
        """The type of the keys and values in the page tables, by its name."""

    @property
    def page_table_bytes(self) -> int:
        """Bytes of all page tables of the pool, over all devices."""

    def number_of(self, node: Any) -> int:
        """Return the number of a node of the trie: 0 is the root, and no number is used twice."""

    def counted_node(self, ref_count: Any) -> Any:
        """Return the node of a reference count, None for one of another engine's trie."""

    def read(self) -> CacheState:
        """Return the state of the cache now."""

    def holdings(self) -> dict[str, list[int]]:
        """Return the pages that each pending request holds, each page once."""

    def last_node(self, request_id: str) -> Any:
        """Return the node of the trie that a pending request refers to, None without one."""

    def stock(self, request_id: str) -> list[int]:
        """Return pages that a request has allocated and not used yet."""

    @property
    def allocated_entries(self) -> list[Any]:
        """The cache's own list of allocated pages, live; only with records."""

    @property
    def duplicate_entries(self) -> list[Any]:
        """The cache's own list of duplicates that are freed next, live; only with records."""

    def edit_allocation(self, request_id: str, edit: Callable[[Any], Any]) -> None:
        """Replace a request's own list of pages by what `edit` makes of it; with allocations."""

    def find_requests(self) -> None:
        """Search for pending requests that began before the probe was attached."""

    def note_request(self, part: Any) -> None:
        """Note the release's own object of a request that the probe cannot observe itself."""

    def forget(self, request_id: str) -> None:
        """Forget all that was noted of a request, which has ended."""

    def contents(self, pages: Sequence[int]) -> dict[int, PageContent]:
        """Return the contents of pages, over all devices.

        An invocation that runs meanwhile may write to them. Raises EngineError where they cannot be
        read.
        """

    def elements(self, page: int) -> Any:
        """Return a page's elements. Raises EngineError for a type that cannot be read."""

    def attach(self, observer: CacheObserver) -> None:
        """Put hooks on the live objects. Raises EngineError if they are hooked already."""

    def detach(self) -> None:
        """Remove the hooks: every object is as it was before."""

    def kept_locks(self) -> list[dict[str, Any]]:
        """Return which locks a thread has held for long, and which thread that is."""

    def invocation_requests(self, process: Any) -> list[str]:
        """Return the request of each row of an invocation."""

    def finish(self, finished: Any, error: BaseException | None = None) -> None:
        """Report the end of an invocation, when the device has finished it."""

    def argument_names(self, phase: str, count: int) -> tuple[str, ...]:
        """Return the names of the model's arguments that come before the page tables."""


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
