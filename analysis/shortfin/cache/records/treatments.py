"""Treatments of what 3.9 notes of the pages in use, and what its requests refer to."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

from analysis.shortfin.treatment import (
    LiveEngine,
    Treatment,
    cache_of,
    lock_for,
    replace_attribute,
    treatment,
)

CACHE_OPERATIONS = (
    "lookup", "allocate", "match", "evict_pages", "publish_pages_for_tokens", "release_pages",
    "free_pages", "free_allocated_pages", "free_cache_pages", "get_allocated_pages",
)  # fmt: skip
POOL_OPERATIONS = ("acquire_free_pages", "free_pages", "copy_page", "copy_page_index")
ALLOCATION_OPERATIONS = ()


def allocation_classes(engine: LiveEngine) -> list[Any]:
    """Return no class: requests hold pages by records of a decoder."""
    return []


def _decoding(engine: LiveEngine) -> Any:
    """Return the release's own module of decoders and page managers."""
    return engine.service.component("decoder.decoder")


@treatment(
    "keep-decode-record",
    "The first pages that decoding takes are not noted: one leaks, and what is cached"
    " afterwards stands under other tokens than its own.",
    needs=["records"],
)
def keep_decode_record(engine: LiveEngine, undo: ExitStack) -> None:
    """What the cache returns for a decode's allocation replaces the request's record."""
    manager, cache = _decoding(engine).PageManager, cache_of(engine)
    allocate, ask, last = manager.allocate, cache.allocate, threading.local()

    def kept(self: Any, req: Any, allocated_cache_recs: Any, *args: Any, **named: Any) -> Any:
        if self._page_cache is not cache:
            return allocate(self, req, allocated_cache_recs, *args, **named)
        last.answer = None
        result = allocate(self, req, allocated_cache_recs, *args, **named)
        if last.answer is not None:
            allocated_cache_recs[req.instance_id] = last.answer
        return result

    def asked(*args: Any, **named: Any) -> Any:
        last.answer = ask(*args, **named)
        return last.answer

    replace_attribute(undo, manager, "allocate", kept)
    replace_attribute(undo, cache, "allocate", asked)


@treatment(
    "register-once",
    "A request with a prompt that fills its last page is counted twice, released once.",
    needs=["records", "trie"],
)
def register_once(engine: LiveEngine, undo: ExitStack) -> None:
    """Only a request's first allocation adds a reference to the node that it goes on from."""
    cache = cache_of(engine)
    kind, allocate, publish = type(cache.root), cache.allocate, cache.publish_pages_for_tokens
    register, held, now = kind.register_allocation, "_cachelab_held", threading.local()

    def mark(info: Any) -> Any:
        setattr(info, held, True)  # what a request keeps from now on says that it has one
        return info

    def allocated(tokens: Any, cache_info: Any = None, *args: Any, **named: Any) -> Any:
        now.holds = hasattr(cache_info, held)
        try:
            return mark(allocate(tokens, cache_info, *args, **named))
        finally:
            now.holds = False

    def published(cache_info: Any, *args: Any, **named: Any) -> Any:
        answer = publish(cache_info, *args, **named)
        return mark(answer) if hasattr(cache_info, held) else answer

    def registered(node: Any) -> Any:
        if not getattr(now, "holds", False):
            return register(node)

    replace_attribute(undo, cache, "allocate", allocated)
    replace_attribute(undo, cache, "publish_pages_for_tokens", published)
    replace_attribute(undo, kind, "register_allocation", registered)


@treatment(
    "refer-to-published",
    "A request that finds its pages published by another goes on with that one's, and its own"
    " reference does not protect them.",
    needs=["records", "trie"],
)
def refer_to_published(engine: LiveEngine, undo: ExitStack) -> None:
    """At a publication the request's reference moves to the deepest node that it matches."""
    cache = cache_of(engine)
    match, publish, now = cache.match, cache.publish_pages_for_tokens, threading.local()

    def published(cache_info: Any, *args: Any, **named: Any) -> Any:
        now.info = cache_info
        try:
            return publish(cache_info, *args, **named)
        finally:
            now.info = None

    def matched(tokens: Any) -> Any:
        node, pages = match(tokens)
        info = getattr(now, "info", None)
        if info is not None and node is not info.last_cached_node and pages:
            node.ref_count.increment()  # under the cache's own lock, before it looks on
            if not info.last_cached_node.ref_count.is_empty():
                info.last_cached_node.ref_count.decrement()
            info.last_cached_node = node
        return node, pages

    replace_attribute(undo, cache, "match", matched)
    replace_attribute(undo, cache, "publish_pages_for_tokens", published)


@treatment(
    "delist-freed-pages",
    "A page that is freed (with the trie: a duplicate) stays on the cache's list of pages in"
    " use. Taken again it stands there twice, a decode that asks for it notes it twice, and"
    " with the trie what follows is cached under other tokens than its own.",
    needs=["records"],
)
def delist_freed_pages(engine: LiveEngine, undo: ExitStack) -> None:
    """Pages are taken off the list of pages in use before they are freed."""
    cache = cache_of(engine)
    pool, release, now = cache.page_pool, cache.release_pages, threading.local()
    free = pool.free_pages

    def released(*args: Any, **named: Any) -> Any:
        now.releases = True
        try:
            return release(*args, **named)
        finally:
            now.releases = False

    def freed(pages: Any) -> Any:
        # With the trie, pages that were published are off it already.
        if hasattr(cache, "root") and not getattr(now, "releases", False):
            return free(pages)
        # First the list, then the pool: once free, a page may be taken and listed again.
        mine = list(pages)
        # Without the trie there is no lock, so that pages are taken off one by one.
        with getattr(cache, "_lock", nullcontext()):
            for page in mine:
                with suppress(ValueError):
                    while True:  # it may stand there more than once
                        cache._allocated_pages.remove(page)
        return free(mine)

    replace_attribute(undo, cache, "release_pages", released)
    replace_attribute(undo, pool, "free_pages", freed)


class PinOnLookup(Treatment):
    """What a request found in the trie stays there until the request holds it."""

    name = "pin-on-lookup"
    hypothesis = "Between lookup and allocation others evict what was found, and reuse its page."
    change = (
        "The node found is referred to from its lookup until its pages are allocated, or what was"
        " found is given back or dropped."
    )
    needs = frozenset({"records", "trie"})

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        lookup, allocate, release = cache.lookup, cache.allocate, cache.release_pages
        lock = lock_for(engine, undo, self.name)
        pinned: dict[int, tuple[Any, Any]] = {}
        lost: deque[int] = deque()
        """Keys of lookups that were dropped; this can occur at any moment, under any lock."""

        def unpin(key: int) -> None:
            _, node = pinned.pop(key, (None, None))
            if node is not None and not node.ref_count.is_empty():
                node.ref_count.decrement()

        def unpin_lost() -> None:
            while lost:
                unpin(lost.popleft())

        def looked_up(*args: Any, **named: Any) -> Any:
            with lock:  # no allocation, hence no eviction, before the node is pinned
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


def free_unpublished_pages(engine: LiveEngine, undo: ExitStack) -> None:
    """Free with a request the pages that it took and did not publish."""
    cache, decoding = cache_of(engine), _decoding(engine)
    manager, decoder = decoding.PageManager, decoding.LlmDecoder
    allocate, publish = manager.allocate, decoder.publish_request
    taken: dict[int, list[int]] = {}  # by the identity of a decoder's records

    def noted(self: Any, req: Any, allocated_cache_recs: Any, *args: Any, **named: Any) -> Any:
        pages, req = allocate(self, req, allocated_cache_recs, *args, **named)
        if self._page_cache is cache:
            taken.setdefault(id(allocated_cache_recs), []).extend(pages)
        return pages, req

    def published(self: Any, req: Any, publish_incomplete_page: bool = False) -> Any:
        records, lost = self._allocated_cach_recs, []
        if publish_incomplete_page and (record := records.get(req.instance_id)) is not None:
            # The last publication exchanges pages in the record, so they are compared before.
            known = {page.index for page in record.pages}
            lost = [p for p in taken.pop(id(records), ()) if p not in known]
        answer = publish(self, req, publish_incomplete_page)
        if lost:
            cache.free_allocated_pages(lost)
        return answer

    replace_attribute(undo, manager, "allocate", noted)
    replace_attribute(undo, decoder, "publish_request", published)
