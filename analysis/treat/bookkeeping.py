"""Treatments of what the cache notes: nodes, references, tokens and pages of a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.errors import EngineError
from analysis.treat.base import (
    Treatment,
    allocation_kinds,
    cache_of,
    nodes_below,
    owner_of,
    part,
    replace_attribute,
)

if TYPE_CHECKING:
    from analysis.engine import Engine


class CopyTokens(Treatment):
    """An allocation knows for which tokens it has room."""

    name = "copy-tokens"
    hypothesis = "A decode that enters a new block gets no page, and shares the padding page."
    change = "An allocation keeps a copy of its tokens, not the list that its request goes on with."
    releases = ("3.1.0",)
    sharing = "trie"
    fixes = ("3.1.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        for kind in allocation_kinds(engine):
            for name in ("extend_allocation", "publish_pages_for_tokens"):
                _copying(undo, kind, name, cache)


def _copying(undo: ExitStack, kind: Any, name: str, cache: Any) -> None:
    call = getattr(kind, name)

    def copied(allocation: Any, tokens: Any, **named: Any) -> Any:
        if owner_of(allocation) is cache:
            tokens = tuple(tokens)
        return call(allocation, tokens, **named)

    replace_attribute(undo, kind, name, copied)


class KeepDecodeRecord(Treatment):
    """A request's record of its pages has all of them."""

    name = "keep-decode-record"
    hypothesis = (
        "The first pages that decoding takes are not noted: one leaks, and what is cached"
        " afterwards stands under other tokens than its own."
    )
    change = "What the cache returns for a decode's allocation replaces the request's record."
    releases = ("3.9.0",)
    fixes = ("3.9.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        manager, cache = part(engine, "decoder.decoder").PageManager, cache_of(engine)
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


class RegisterOnce(Treatment):
    """A request holds one reference, however often it takes pages."""

    name = "register-once"
    hypothesis = "Requests whose prompt fills its last page count twice, and end once."
    change = "Only a request's first allocation adds a reference to the node that it goes on from."
    releases = ("3.9.0",)
    sharing = "trie"
    fixes = ("3.9.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
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


class ReferToPublished(Treatment):
    """A request refers to the node whose pages it uses, whoever published it."""

    name = "refer-to-published"
    hypothesis = (
        "A request that finds its pages published by another goes on with that one's, and its own"
        " reference does not protect them."
    )
    change = "At a publication the request's reference moves to the deepest node that it matches."
    releases = ("3.9.0",)
    sharing = "trie"
    fixes = ("3.9.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
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


class ReuseExistingNode(Treatment):
    """Two requests that publish the same tokens publish one node."""

    name = "reuse-existing-node"
    hypothesis = "A node published under a key that is taken hides the one that is there."
    change = "Where a child with these tokens exists, it is returned, and none is made."
    releases = ("3.1.0",)
    sharing = "trie"
    fixes = ("3.1.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        kind = type(cache_of(engine).root)
        create = kind.create_child

        def reused(node: Any, tokens: Any, page: Any) -> Any:
            there = node.children.get(tokens) if node.children else None
            return create(node, tokens, page) if there is None else there

        replace_attribute(undo, kind, "create_child", reused)


class TrueLeaves(Treatment):
    """Only nodes without children are evicted."""

    name = "true-leaves"
    hypothesis = "Inner nodes stay among the leaves, and their eviction orphans what hangs on them."
    change = "A node that has children is taken out of the leaves, and not put in."
    releases = ("3.1.0",)
    sharing = "trie"
    fixes = ("3.1.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        kind = type(cache.root)
        create = kind.create_child

        def created(node: Any, tokens: Any, page: Any) -> Any:
            child = create(node, tokens, page)
            cache.leaves.discard(node)
            return child

        replace_attribute(undo, kind, "create_child", created)
        for allocation in allocation_kinds(engine):
            _with_true_leaves(undo, allocation, cache)


class _TrueLeaves:
    """The set of leaves while something is published: no inner node gets in."""

    def __init__(self, leaves: Any) -> None:
        self.leaves = leaves

    def add(self, node: Any) -> None:
        if not node.children:
            self.leaves.add(node)

    def discard(self, node: Any) -> None:
        self.leaves.discard(node)

    def __contains__(self, node: Any) -> bool:
        return node in self.leaves

    def __iter__(self) -> Iterator[Any]:
        return iter(self.leaves)


def _with_true_leaves(undo: ExitStack, kind: Any, cache: Any) -> None:
    publish = kind.publish_pages_for_tokens

    def published(allocation: Any, *args: Any, **named: Any) -> Any:
        if owner_of(allocation) is not cache:
            return publish(allocation, *args, **named)
        leaves = cache.leaves
        cache.leaves = _TrueLeaves(leaves)  # within the operation, as an observer sees it
        try:
            return publish(allocation, *args, **named)
        finally:
            cache.leaves = leaves

    replace_attribute(undo, kind, "publish_pages_for_tokens", published)


class GiveBackReference(Treatment):
    """A request that gets no pages leaves no reference behind."""

    name = "give-back-reference"
    hypothesis = "Requests that found too few pages keep what they found from being evicted."
    change = "An acquisition that fails gives back the reference that it took first."
    releases = ("3.1.0",)
    sharing = "trie"
    fixes = ("3.1.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        match, acquire, take = (
            cache._match, cache.acquire_pages_for_tokens, cache.page_pool.acquire_free_pages,
        )  # fmt: skip
        found: list[Any] = []
        shortages = [0]

        def matched(*args: Any) -> Any:
            answer = match(*args)
            found.append(answer[0])
            return answer

        def acquired(*args: Any, **named: Any) -> Any:
            found.clear()
            shortages[0] = 0
            try:
                return acquire(*args, **named)
            finally:
                found.clear()

        def taken(count: int) -> Any:
            pages = take(count)
            if pages is None and found:
                shortages[0] += 1
                if shortages[0] == 2:  # what could be evicted was: now the acquisition fails
                    found.pop().ref_count.decrement()
            return pages

        replace_attribute(undo, cache, "_match", matched)
        replace_attribute(undo, cache, "acquire_pages_for_tokens", acquired)
        replace_attribute(undo, cache.page_pool, "acquire_free_pages", taken)


class FreeUnpublishedPages(Treatment):
    """What a request took and did not publish goes back to the pool with it.

    On 3.9.0 it ends the leak that `keep-decode-record` ends at its root, so it is no fix beside it.
    """

    name = "free-unpublished-pages"
    hypothesis = "Pages that a request took, and did not publish, are lost when it ends."
    change = "At a request's end its pages are freed that are neither free nor known to the cache."
    fixes = ("3.1.0",)

    @classmethod
    def check(cls, release: str | None, prefix_sharing: str) -> None:
        super().check(release, prefix_sharing)
        if release == "3.1.0" and prefix_sharing == "none":
            raise EngineError(
                f"The treatment {cls.name} needs prefix sharing trie on shortfin {release}: without"
                " it nothing is published, and all is freed."
            )

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        kinds = allocation_kinds(engine)
        if kinds:
            self._by_allocation(undo, cache, kinds)
        else:
            self._by_request(engine, undo, cache)

    def _by_allocation(self, undo: ExitStack, cache: Any, kinds: list[Any]) -> None:
        published = {node.page.index for node in nodes_below(cache.root)}
        free, create = cache.page_pool.free_pages, type(cache.root).create_child

        def freed(pages: Any) -> Any:
            published.difference_update(page.index for page in pages)
            return free(pages)

        def created(node: Any, tokens: Any, page: Any) -> Any:
            child = create(node, tokens, page)
            published.add(child.page.index)
            return child

        def release(kind: Any) -> None:
            before = kind.release_pages

            def released(allocation: Any) -> Any:
                done = allocation._is_released
                answer = before(allocation)
                if not done and owner_of(allocation) is cache:
                    # Once published, a page may be another's too, even if its node was replaced.
                    mine = {p.index: p for p in allocation.pages if p.index not in published}
                    cache.page_pool.free_pages(list(mine.values()))
                return answer

            replace_attribute(undo, kind, "release_pages", released)

        replace_attribute(undo, cache.page_pool, "free_pages", freed)
        replace_attribute(undo, type(cache.root), "create_child", created)
        for kind in kinds:
            release(kind)

    def _by_request(self, engine: Engine, undo: ExitStack, cache: Any) -> None:
        decoding = part(engine, "decoder.decoder")
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
