"""Treatments of who does what when: locks, threads, one thing after another."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.shortfin.locks import WatchedLock
from analysis.shortfin.treatment import (
    Treatment,
    allocation_kinds,
    cache_of,
    owner_of,
    part,
    replace_attribute,
)

if TYPE_CHECKING:
    from analysis.engine import Engine

CACHE_OPERATIONS = (
    "acquire_pages_for_tokens", "_match", "_evict_pages", "lookup", "allocate", "match",
    "evict_pages", "publish_pages_for_tokens", "release_pages", "free_pages",
    "free_allocated_pages", "free_cache_pages", "get_allocated_pages",
)  # fmt: skip
POOL_OPERATIONS = ("acquire_free_pages", "free_pages", "copy_page", "copy_page_index")
ALLOCATION_OPERATIONS = ("extend_allocation", "publish_pages_for_tokens", "release_pages")

_STROBE_S = 0.004


def lock_for(engine: Engine, undo: ExitStack, name: str) -> WatchedLock:
    """Return a re-entrant lock that whoever observes the engine, now or later, knows by a name."""
    watcher = None if engine.probe is None else engine.probe.observer
    lock = WatchedLock(threading.RLock(), name, None if watcher is None else watcher.locks)
    assert engine.service is not None
    engine.service.treatment_locks.append(lock)
    undo.callback(engine.service.treatment_locks.remove, lock)
    return lock


class LockCache(Treatment):
    """Nothing is done to the cache while something else is done to it."""

    name = "lock-cache"
    hypothesis = "Threads change the trie, its references or the pool while others are at it."
    change = "One re-entrant lock is held during every operation of the cache and of the pool."

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        lock = lock_for(engine, undo, self.name)

        def locked(owner: Any, name: str) -> None:
            call = getattr(owner, name)

            @functools.wraps(call)
            def alone(*args: Any, **named: Any) -> Any:
                if isinstance(owner, type) and owner_of(args[0]) is not cache:
                    return call(*args, **named)
                with lock:
                    return call(*args, **named)

            replace_attribute(undo, owner, name, alone)

        owners = [(cache, CACHE_OPERATIONS), (cache.page_pool, POOL_OPERATIONS)]
        owners += [(kind, ALLOCATION_OPERATIONS) for kind in allocation_kinds(engine)]
        for owner, names in owners:
            for name in names:
                if hasattr(owner, name):
                    locked(owner, name)


class OneWorker(Treatment):
    """Requests share one thread, as they did up to 3.4."""

    name = "one-worker"
    hypothesis = "Requests on several threads get between each other's steps."
    change = "Each request's process, with all that it does to the cache, runs on one worker."
    needs = frozenset({"worker-pool"})
    acts_on = "server"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        assert engine.service is not None
        service = engine.service.native
        fibers, fiber = service.main_fiber_pool, service.main_fiber
        give_back = fibers.return_fiber

        async def get() -> tuple[None, Any]:
            return None, fiber

        def returned(numbers: Any) -> None:
            listed = numbers if isinstance(numbers, list) else [numbers]
            give_back([n for n in listed if n is not None])

        replace_attribute(undo, fibers, "get", get)
        # What was taken before comes back after: this one knows both kinds and stays to the end.
        replace_attribute(undo, fibers, "return_fiber", returned)


class OneAtATime(Treatment):
    """No two requests are under way, so no batch has two rows."""

    name = "one-at-a-time"
    hypothesis = "Requests that are under way at once disturb each other, in whatever way."
    change = "A request goes to the engine when the one before it has ended."
    acts_on = "server"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        adapter = engine.service
        assert adapter is not None
        launch, lock = adapter.launch, threading.Lock()
        waiting: deque[Any] = deque()
        under_way: list[Any] = []

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
                if call in under_way:
                    under_way.remove(call)
                following = waiting.popleft() if waiting and not under_way else None
                if following is not None:
                    under_way.append(following)
            if following is not None:
                go(following)

        def one(call: Any) -> None:
            with lock:
                if under_way:
                    waiting.append(call)
                    return
                under_way.append(call)
            go(call)

        replace_attribute(undo, adapter, "launch", one)


class ShortStrobes(Treatment):
    """The batcher waits less for a batch to fill."""

    name = "short-strobes"
    hypothesis = "It is a matter of timing: what happens between the batcher's long waits."
    change = "The batcher looks for work every 4 ms, not every 100 to 250."
    needs = frozenset({"strobes"})
    acts_on = "server"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        batcher = part(engine, "service").BatcherProcess
        for name in ("STROBE_SHORT_DELAY", "STROBE_LONG_DELAY"):
            replace_attribute(undo, batcher, name, _STROBE_S)


class PinOnLookup(Treatment):
    """What a request found in the trie stays there until the request holds it."""

    name = "pin-on-lookup"
    hypothesis = "Between lookup and allocation others evict what was found, and reuse its page."
    change = (
        "The node found is referred to from its lookup until its pages are allocated, or what was"
        " found is given back or dropped."
    )
    needs = frozenset({"records", "trie"})

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        lookup, allocate, release = cache.lookup, cache.allocate, cache.release_pages
        lock = lock_for(engine, undo, self.name)
        pinned: dict[int, tuple[Any, Any]] = {}
        lost: deque[int] = deque()
        """Of lookups that nobody has any more; their ends come at any moment, under any lock."""

        def unpin(key: int) -> None:
            _, node = pinned.pop(key, (None, None))
            if node is not None and not node.ref_count.is_empty():
                node.ref_count.decrement()

        def unpin_lost() -> None:
            while lost:
                unpin(lost.popleft())

        def looked_up(*args: Any, **named: Any) -> Any:
            with lock:  # nobody allocates, hence evicts, before the pin is in
                found = lookup(*args, **named)
                unpin_lost()
                if found.last_cached_node is not cache.root:
                    found.last_cached_node.ref_count.increment()
                    key = id(found)
                    end = weakref.ref(found, lambda _: lost.append(key))
                    pinned[key] = end, found.last_cached_node
                return found

        def allocated(*args: Any, **named: Any) -> Any:
            info = named.get("cache_info", args[1] if len(args) > 1 else None)
            with lock:
                unpin_lost()
                try:
                    return allocate(*args, **named)
                finally:
                    unpin(id(info))

        def released(cache_info: Any) -> Any:
            # Given back without an allocation: the reference that goes is the pin.
            with lock:
                unpin_lost()  # one of them may have had this id
                pinned.pop(id(cache_info), None)
            return release(cache_info)

        def unpin_all() -> None:
            for key in list(pinned):
                unpin(key)

        undo.callback(unpin_all)
        replace_attribute(undo, cache, "lookup", looked_up)
        replace_attribute(undo, cache, "allocate", allocated)
        replace_attribute(undo, cache, "release_pages", released)
