"""Treatments of scheduling: locks, threads, batches, and requests without free pages."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from analysis.shortfin.cache import part_of
from analysis.shortfin.treatment import (
    LiveEngine,
    cache_of,
    lock_for,
    replace_attribute,
    treatment,
)

_STROBE_S = 0.004


@treatment("lock-cache", "Threads change the trie, its references or the pool at the same time.")
def lock_cache(engine: LiveEngine, undo: ExitStack) -> None:
    """Holds one re-entrant lock during every operation of the cache and the pool."""
    lock = lock_for(engine, undo, "lock-cache")
    for owner, name, is_own in _cache_operations(engine):
        call = getattr(owner, name)

        @functools.wraps(call)
        def locked(*args: Any, call: Any = call, is_own: Any = is_own, **named: Any) -> Any:
            if not is_own(*args, **named):
                return call(*args, **named)
            with lock:
                return call(*args, **named)

        replace_attribute(undo, owner, name, locked)


def _cache_operations(engine: LiveEngine) -> Iterator[tuple[Any, str, Callable[..., bool]]]:
    """Yield the operations of the cache and its pool: owner, name, and a predicate.

    An owner may be a class that engines share, so the predicate returns whether a call with given
    arguments is on this engine's cache.
    """
    cache, dialect = cache_of(engine), part_of(engine.release, "treatments")
    owners = {cache: dialect.CACHE_OPERATIONS, cache.page_pool: dialect.POOL_OPERATIONS}
    for owner, names in owners.items():
        for name in names:
            if hasattr(owner, name):
                yield owner, name, lambda *args, **named: True
    for kind in dialect.allocation_classes(engine):
        for name in dialect.ALLOCATION_OPERATIONS:
            yield kind, name, lambda allocation, *a, **n: dialect.owner_of(allocation) is cache


@treatment(
    "one-worker",
    "Steps of requests on several threads interleave.",
    acts_on="server",
    needs=["worker-pool"],
)
def one_worker(engine: LiveEngine, undo: ExitStack) -> None:
    """Runs the processes of all requests, and their cache operations, on one worker."""
    engine.service.edits.share_one_worker(engine.service, undo)


@treatment(
    "serialise-invocations",
    "Two invocations on one worker wait for each other with the GIL held.",
    acts_on="server",
    needs=["overlap-freezes"],
)
def serialise_invocations(engine: LiveEngine, undo: ExitStack) -> None:
    """Runs one invocation at a time on each worker."""
    undo.callback(engine.service.serialise_invocations())


@treatment(
    "separate-fibers",
    "A request finds no fiber while a batcher makes a batch, because they share one list.",
    acts_on="server",
    needs=["shared-fiber-list"],
)
def separate_fibers(engine: LiveEngine, undo: ExitStack) -> None:
    """Keeps all fibers in a list of their own, from which batchers take none."""
    engine.service.edits.separate_fibers(engine.service, undo)


@treatment("one-at-a-time", "Concurrent requests disturb each other.", acts_on="server")
def one_at_a_time(engine: LiveEngine, undo: ExitStack) -> None:
    """Sends a request to the engine only when the previous one has ended."""
    service = engine.service
    assert service is not None
    launch, lock = service.launch, threading.Lock()
    queued: deque[Any] = deque()
    running: list[Any] = []

    def go(call: Any) -> None:
        ended = threading.Event()

        def on_end(answer: Any) -> None:
            call.on_end(answer)
            if not ended.is_set():
                ended.set()
                after(call)

        try:
            launch(replace(call, on_end=on_end))
        except Exception:
            after(call)
            raise

    def after(call: Any) -> None:
        with lock:
            if call in running:
                running.remove(call)
            following = queued.popleft() if queued and not running else None
            if following is not None:
                running.append(following)
        if following is not None:
            go(following)

    def launched(call: Any) -> None:
        with lock:
            if running:
                queued.append(call)
                return
            running.append(call)
        go(call)

    replace_attribute(undo, service, "launch", launched)


@treatment(
    "short-strobes",
    "The failure depends on the batcher's long waits.",
    acts_on="server",
    needs=["strobes"],
)
def short_strobes(engine: LiveEngine, undo: ExitStack) -> None:
    """Makes the batcher look for work every 4 ms instead of every 100 to 250 ms."""
    engine.service.edits.shorten_strobes(undo, _STROBE_S)


@treatment(
    "requeue-unscheduled",
    "Prefills that find no pages are completed without an answer.",
    acts_on="server",
    needs=["drops-unscheduled"],
)
def requeue_unscheduled(engine: LiveEngine, undo: ExitStack) -> None:
    """Keeps a prefill that found no free pages pending, and retries it."""
    engine.service.edits.requeue_unscheduled(engine.service, undo)


@treatment(
    "ignore-unreserved",
    "A request for one token gives back a place that it never reserved, which kills the worker.",
    acts_on="server",
    needs=["late-reservation"],
)
def ignore_unreserved(engine: LiveEngine, undo: ExitStack) -> None:
    """Ignores the end of a reservation that was never made."""
    engine.service.edits.ignore_unreserved(engine.service, undo)


@treatment(
    "survive-allocation-failure",
    "A failed allocation kills the worker, or leaks pages and blocks other requests.",
    acts_on="server",
)
def survive_allocation_failure(engine: LiveEngine, undo: ExitStack) -> None:
    """Ends a request without free pages with an error, and frees its pages."""
    engine.service.edits.survive_allocation_failure(engine.service, undo)
