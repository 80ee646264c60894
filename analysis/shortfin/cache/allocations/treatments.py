"""Treatments of what allocations and the trie of 3.1 note: tokens, nodes, leaves, references."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.shortfin.treatment import (
    Treatment,
    allocation_kinds,
    cache_of,
    owner_of,
    replace_attribute,
)

if TYPE_CHECKING:
    from analysis.engine import Engine


class CopyTokens(Treatment):
    """An allocation knows for which tokens it has room."""

    name = "copy-tokens"
    hypothesis = "A decode that enters a new block gets no page, and shares the padding page."
    change = "An allocation keeps a copy of its tokens, not the list that its request goes on with."
    needs = frozenset({"allocations", "trie"})

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


class ReuseExistingNode(Treatment):
    """Two requests that publish the same tokens publish one node."""

    name = "reuse-existing-node"
    hypothesis = "A node published under a key that is taken hides the one that is there."
    change = "Where a child with these tokens exists, it is returned, and none is made."
    needs = frozenset({"allocations", "trie"})

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
    needs = frozenset({"allocations", "trie"})

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
    needs = frozenset({"allocations", "trie"})

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
