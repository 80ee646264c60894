"""Treatments of 3.9's records of pages in use, and of references to nodes."""

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
    replaced,
    treatment,
)

CACHE_OPERATIONS = (
    "lookup", "allocate", "match", "evict_pages", "publish_pages_for_tokens", "release_pages",
    "free_pages", "free_allocated_pages", "free_cache_pages", "get_allocated_pages",
)  # fmt: skip
POOL_OPERATIONS = ("acquire_free_pages", "free_pages", "copy_page", "copy_page_index")
ALLOCATION_OPERATIONS = ()


def allocation_classes(engine: LiveEngine) -> list[Any]:
    """Return no class, because requests hold pages with records of a decoder."""
    return []


def _decoding(engine: LiveEngine) -> Any:
    """Return the release's module of decoders and page managers."""
    return engine.service.component("decoder.decoder")


@treatment(
    "keep-decode-record",
    "The first pages allocated for decoding are not recorded: one leaks, and later pages are cached"
    " under wrong tokens.",
    needs=["records"],
)
def keep_decode_record(engine: LiveEngine, undo: ExitStack) -> None:
    """Replaces the request's record by the one that a decode's allocation returns."""
    cache, last = cache_of(engine), threading.local()

    @replaced(undo, _decoding(engine).PageManager, "allocate")
    def kept(
        allocate: Any, self: Any, req: Any, allocated_cache_recs: Any, *args: Any, **named: Any
    ) -> Any:
        if self._page_cache is not cache:
            return allocate(self, req, allocated_cache_recs, *args, **named)
        last.answer = None
        result = allocate(self, req, allocated_cache_recs, *args, **named)
        if last.answer is not None:
            allocated_cache_recs[req.instance_id] = last.answer
        return result

    @replaced(undo, cache, "allocate")
    def asked(allocate: Any, *args: Any, **named: Any) -> Any:
        last.answer = allocate(*args, **named)
        return last.answer


@treatment(
    "register-once",
    "A request whose prompt fills its last page takes two references and releases one.",
    needs=["records", "trie"],
)
def register_once(engine: LiveEngine, undo: ExitStack) -> None:
    """Adds a reference to the node that a request continues only at its first allocation."""
    cache, held, now = cache_of(engine), "_cachelab_held", threading.local()

    def mark(info: Any) -> Any:
        setattr(info, held, True)  # marks the record: the request has a reference
        return info

    @replaced(undo, cache, "allocate")
    def allocated(
        allocate: Any, tokens: Any, cache_info: Any = None, *args: Any, **named: Any
    ) -> Any:
        now.holds = hasattr(cache_info, held)
        try:
            return mark(allocate(tokens, cache_info, *args, **named))
        finally:
            now.holds = False

    @replaced(undo, cache, "publish_pages_for_tokens")
    def published(publish: Any, cache_info: Any, *args: Any, **named: Any) -> Any:
        answer = publish(cache_info, *args, **named)
        return mark(answer) if hasattr(cache_info, held) else answer

    @replaced(undo, type(cache.root), "register_allocation")
    def registered(register: Any, node: Any) -> Any:
        if not getattr(now, "holds", False):
            return register(node)


@treatment(
    "refer-to-published",
    "A request uses pages that another one published, and its own reference does not protect them.",
    needs=["records", "trie"],
)
def refer_to_published(engine: LiveEngine, undo: ExitStack) -> None:
    """Moves the request's reference to the deepest matching node at each publication."""
    cache, now = cache_of(engine), threading.local()

    @replaced(undo, cache, "publish_pages_for_tokens")
    def published(publish: Any, cache_info: Any, *args: Any, **named: Any) -> Any:
        now.info = cache_info
        try:
            return publish(cache_info, *args, **named)
        finally:
            now.info = None

    @replaced(undo, cache, "match")
    def matched(match: Any, tokens: Any) -> Any:
        node, pages = match(tokens)
        info = getattr(now, "info", None)
        if info is not None and node is not info.last_cached_node and pages:
            node.ref_count.increment()  # under the cache's lock, before it continues
            if not info.last_cached_node.ref_count.is_empty():
                info.last_cached_node.ref_count.decrement()
            info.last_cached_node = node
        return node, pages


@treatment(
    "delist-freed-pages",
    "A freed page (with the trie: a freed duplicate) stays in the cache's list of pages in use. If"
    " it is allocated again, it is there twice, a decode records it twice, and with the trie later"
    " pages are cached under wrong tokens.",
    needs=["records"],
)
def delist_freed_pages(engine: LiveEngine, undo: ExitStack) -> None:
    """Removes pages from the list of pages in use before they are freed."""
    cache, now = cache_of(engine), threading.local()

    @replaced(undo, cache, "release_pages")
    def released(release: Any, *args: Any, **named: Any) -> Any:
        now.releases = True
        try:
            return release(*args, **named)
        finally:
            now.releases = False

    @replaced(undo, cache.page_pool, "free_pages")
    def freed(free: Any, pages: Any) -> Any:
        # With the trie, published pages are already removed.
        if hasattr(cache, "root") and not getattr(now, "releases", False):
            return free(pages)
        # Before the pool: a free page may be allocated and listed again.
        mine = list(pages)
        # Without the trie there is no lock, so pages are removed one by one.
        with getattr(cache, "_lock", nullcontext()):
            for page in mine:
                with suppress(ValueError):
                    while True:  # it may be listed more than once
                        cache._allocated_pages.remove(page)
        return free(mine)


class PinOnLookup(Treatment):
    """Keeps the pages of a lookup in the trie until the request holds them."""

    name = "pin-on-lookup"
    hypothesis = "Between lookup and allocation, other requests evict the found pages."
    change = (
        "Adds a reference to the node of a lookup until its pages are allocated, or the lookup is"
        " released or dropped."
    )
    needs = frozenset({"records", "trie"})

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        lock = lock_for(engine, undo, self.name)
        pinned: dict[int, tuple[Any, Any]] = {}
        lost: deque[int] = deque()
        """Keys of dropped lookups; a drop can occur at any moment, under any lock."""

        def unpin(key: int) -> None:
            _, node = pinned.pop(key, (None, None))
            if node is not None and not node.ref_count.is_empty():
                node.ref_count.decrement()

        def unpin_lost() -> None:
            while lost:
                unpin(lost.popleft())

        @undo.callback
        def unpin_all() -> None:
            for key in list(pinned):
                unpin(key)

        @replaced(undo, cache, "lookup")
        def looked_up(lookup: Any, *args: Any, **named: Any) -> Any:
            with lock:  # no allocation or eviction before the node is pinned
                found = lookup(*args, **named)
                unpin_lost()
                if found.last_cached_node is not cache.root:
                    found.last_cached_node.ref_count.increment()
                    key = id(found)
                    end = weakref.ref(found, lambda _: lost.append(key))
                    pinned[key] = end, found.last_cached_node
                return found

        @replaced(undo, cache, "allocate")
        def allocated(allocate: Any, *args: Any, **named: Any) -> Any:
            info = named.get("cache_info", args[1] if len(args) > 1 else None)
            with lock:
                unpin_lost()
                try:
                    return allocate(*args, **named)
                finally:
                    unpin(id(info))

        @replaced(undo, cache, "release_pages")
        def released(release: Any, cache_info: Any) -> Any:
            # Released without an allocation: remove the pin's reference.
            with lock:
                unpin_lost()  # a dropped lookup may have had this id
                pinned.pop(id(cache_info), None)
            return release(cache_info)


def free_unpublished_pages(engine: LiveEngine, undo: ExitStack) -> None:
    """Free the unpublished pages of a request at its end."""
    cache, decoding = cache_of(engine), _decoding(engine)
    taken: dict[int, list[int]] = {}  # by the id of a decoder's records

    @replaced(undo, decoding.PageManager, "allocate")
    def noted(
        allocate: Any, self: Any, req: Any, allocated_cache_recs: Any, *args: Any, **named: Any
    ) -> Any:
        pages, req = allocate(self, req, allocated_cache_recs, *args, **named)
        if self._page_cache is cache:
            taken.setdefault(id(allocated_cache_recs), []).extend(pages)
        return pages, req

    @replaced(undo, decoding.LlmDecoder, "publish_request")
    def published(publish: Any, self: Any, req: Any, publish_incomplete_page: bool = False) -> Any:
        records, lost = self._allocated_cach_recs, []
        if publish_incomplete_page and (record := records.get(req.instance_id)) is not None:
            # Compare first, because the last publication exchanges pages in the record.
            known = {page.index for page in record.pages}
            lost = [p for p in taken.pop(id(records), ()) if p not in known]
        answer = publish(self, req, publish_incomplete_page)
        if lost:
            cache.free_allocated_pages(lost)
        return answer
