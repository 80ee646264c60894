"""Treatments of allocations and their trie: tokens, nodes, references."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from analysis.shortfin.cache.trie import read_trie
from analysis.shortfin.treatment import (
    LiveEngine,
    cache_of,
    replaced,
    treatment,
)

CACHE_OPERATIONS = ("acquire_pages_for_tokens", "_match", "_evict_pages")
POOL_OPERATIONS = ("acquire_free_pages", "free_pages", "copy_page")
ALLOCATION_OPERATIONS = ("extend_allocation", "publish_pages_for_tokens", "release_pages")


def allocation_classes(engine: LiveEngine) -> list[Any]:
    """Return the classes of the objects with which requests hold pages."""
    modules = [engine.service.component(f"kvcache.{m}_attention_cache") for m in ("base", "trie")]
    names = ("BasePagedAttentionCacheAllocation", "TriePagedAttentionCacheAllocation")
    return [getattr(module, name) for module, name in zip(modules, names, strict=True)]


def owner_of(allocation: Any) -> Any:
    """Return the cache that made an allocation."""
    return getattr(allocation, "cache", None) or getattr(allocation, "_cache", None)


@treatment(
    "copy-tokens",
    "A decode that enters a new block gets no page and uses the padding page.",
    needs=["allocations", "aliased-tokens", "trie"],
)
def copy_tokens(engine: LiveEngine, undo: ExitStack) -> None:
    """Stores a copy of the tokens in an allocation, not the list that its request extends."""
    cache = cache_of(engine)
    for kind in allocation_classes(engine):
        for name in ("extend_allocation", "publish_pages_for_tokens"):
            _copying(undo, kind, name, cache)


def _copying(undo: ExitStack, kind: Any, name: str, cache: Any) -> None:
    @replaced(undo, kind, name)
    def copied(call: Any, allocation: Any, tokens: Any, **named: Any) -> Any:
        if owner_of(allocation) is cache:
            tokens = tuple(tokens)
        return call(allocation, tokens, **named)


@treatment(
    "reuse-existing-node",
    "A published node replaces an existing node with the same key.",
    needs=["allocations", "blind-publish", "trie"],
)
def reuse_existing_node(engine: LiveEngine, undo: ExitStack) -> None:
    """Reuses an existing child with the same tokens instead of creating a node."""

    @replaced(undo, type(cache_of(engine).root), "create_child")
    def reused(create: Any, node: Any, tokens: Any, page: Any) -> Any:
        there = node.children.get(tokens) if node.children else None
        return create(node, tokens, page) if there is None else there


@treatment(
    "true-leaves",
    "Inner nodes stay in the set of leaves, and their eviction orphans their children.",
    needs=["allocations", "blind-publish", "trie"],
)
def true_leaves(engine: LiveEngine, undo: ExitStack) -> None:
    """Keeps nodes with children out of the set of leaves."""
    cache = cache_of(engine)

    @replaced(undo, type(cache.root), "create_child")
    def created(create: Any, node: Any, tokens: Any, page: Any) -> Any:
        child = create(node, tokens, page)
        cache.leaves.discard(node)
        return child

    lock = threading.Lock()  # one exchange of the set at a time
    for allocation in allocation_classes(engine):
        _with_true_leaves(undo, allocation, cache, lock)


class _TrueLeaves:
    """The set of leaves during a publication; rejects inner nodes."""

    def __init__(self, leaves: Any) -> None:
        self.leaves = leaves

    def add(self, node: Any) -> None:
        if not node.children:
            self.leaves.add(node)

    def discard(self, node: Any) -> None:
        self.leaves.discard(node)

    def remove(self, node: Any) -> None:
        self.leaves.remove(node)

    def __contains__(self, node: Any) -> bool:
        return node in self.leaves

    def __iter__(self) -> Iterator[Any]:
        return iter(self.leaves)


def _with_true_leaves(
    undo: ExitStack, kind: Any, cache: Any, lock: AbstractContextManager[Any]
) -> None:
    @replaced(undo, kind, "publish_pages_for_tokens")
    def published(publish: Any, allocation: Any, *args: Any, **named: Any) -> Any:
        if owner_of(allocation) is not cache:
            return publish(allocation, *args, **named)
        with lock:
            leaves = cache.leaves
            cache.leaves = _TrueLeaves(leaves)  # within the operation, for observers
            try:
                return publish(allocation, *args, **named)
            finally:
                cache.leaves = leaves


@treatment(
    "give-back-reference",
    "Requests that get too few pages keep a reference and block eviction.",
    needs=["allocations", "trie"],
)
def give_back_reference(engine: LiveEngine, undo: ExitStack) -> None:
    """Releases the reference that a failed acquisition took."""
    cache, now = cache_of(engine), threading.local()

    @replaced(undo, cache, "_match")
    def matched(match: Any, *args: Any) -> Any:
        answer = match(*args)
        if getattr(now, "shortages", None) is not None:
            now.found = answer[0]
        return answer

    @replaced(undo, cache, "acquire_pages_for_tokens")
    def acquired(acquire: Any, *args: Any, **named: Any) -> Any:
        now.found, now.shortages = None, 0
        try:
            return acquire(*args, **named)
        finally:
            now.found = now.shortages = None

    @replaced(undo, cache.page_pool, "acquire_free_pages")
    def taken(take: Any, count: int) -> Any:
        pages = take(count)
        if pages is None and getattr(now, "found", None) is not None:
            now.shortages += 1
            if now.shortages == 2:  # everything evictable was evicted: the acquisition fails
                now.found.ref_count.decrement()
                now.found = None
        return pages


def free_unpublished_pages(engine: LiveEngine, undo: ExitStack) -> None:
    """Free the unpublished pages of an allocation with it."""
    cache = cache_of(engine)
    published = {node.page.index for node in read_trie(cache.root, (), id).live[1:]}

    @replaced(undo, cache.page_pool, "free_pages")
    def freed(free: Any, pages: Any) -> Any:
        published.difference_update(page.index for page in pages)
        return free(pages)

    @replaced(undo, type(cache.root), "create_child")
    def created(create: Any, node: Any, tokens: Any, page: Any) -> Any:
        child = create(node, tokens, page)
        published.add(child.page.index)
        return child

    def released(release: Any, allocation: Any) -> Any:
        done = allocation._is_released
        answer = release(allocation)
        if not done and owner_of(allocation) is cache:
            # A published page may have other owners, even if its node was replaced.
            own = {p.index: p for p in allocation.pages if p.index not in published}
            cache.page_pool.free_pages(list(own.values()))
        return answer

    for kind in allocation_classes(engine):
        replaced(undo, kind, "release_pages")(released)
