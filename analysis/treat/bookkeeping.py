"""Treatments of what the cache notes: nodes, references, tokens and pages of a request."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.errors import EngineError
from analysis.treat.base import (
    Treatment,
    allocation_kinds,
    cache_of,
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
    change = "After a publication, nodes that have children are taken out of the leaves."
    releases = ("3.1.0",)
    sharing = "trie"
    fixes = ("3.1.0",)

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        for kind in allocation_kinds(engine):
            _after(undo, kind, "publish_pages_for_tokens", cache, lambda _: _prune(cache))


def _prune(cache: Any) -> None:
    for node in [node for node in cache.leaves if node.children]:
        cache.leaves.remove(node)


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
        match, acquire = cache._match, cache.acquire_pages_for_tokens
        found: list[Any] = []

        def matched(*args: Any) -> Any:
            answer = match(*args)
            found.append(answer[0])
            return answer

        def acquired(*args: Any, **named: Any) -> Any:
            found.clear()
            try:
                return acquire(*args, **named)
            except Exception:
                if found:
                    found[-1].ref_count.decrement()
                raise

        replace_attribute(undo, cache, "_match", matched)
        replace_attribute(undo, cache, "acquire_pages_for_tokens", acquired)


class FreeUnpublishedPages(Treatment):
    """What a request took and did not publish goes back to the pool with it."""

    name = "free-unpublished-pages"
    hypothesis = "Pages that a request took, and did not publish, are lost when it ends."
    change = "At a request's end its pages are freed that are neither free nor known to the cache."
    fixes = ("3.1.0", "3.9.0")

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
        published = {node.page.index for node in _nodes(cache.root)}
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


def _nodes(root: Any) -> list[Any]:
    """Return all nodes below the root."""
    found: list[Any] = []
    waiting = [root]
    while waiting:
        children = list((waiting.pop().children or {}).values())
        found += children
        waiting += children
    return found


def _after(undo: ExitStack, kind: Any, name: str, cache: Any, then: Any) -> None:
    call = getattr(kind, name)

    def done(allocation: Any, *args: Any, **named: Any) -> Any:
        answer = call(allocation, *args, **named)
        if owner_of(allocation) is cache:
            then(allocation)
        return answer

    replace_attribute(undo, kind, name, done)
