"""Faults in the pool and in the trie; most inject before a decode, on the engine's thread."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.shortfin.treatment import Place, replace_attribute
from analysis.treatments.faults.base import Fault, Injection, InvocationFault
from analysis.treatments.invocations import PendingInvocation
from analysis.treatments.pages import fill_page, resting_pages

if TYPE_CHECKING:
    from analysis.engine import Engine


def _entry(probe: Any, page: int) -> Any:
    """Return the pool's own object for a page."""
    return probe.pool.attn_page_entries[page]


def _held(probe: Any, request_id: str) -> list[int]:
    """Return the pages of a request, those that nobody shares first."""
    nodes = {node.page for node in probe.read().nodes}
    pages = probe.holdings().get(request_id, [])
    return sorted(pages, key=lambda page: page in nodes)


class FreeWhileUsed(InvocationFault):
    """A page is given back while its request goes on."""

    name = "fault:free-while-used"
    change = "A page of a request under way is given back to the pool, once."
    rule, cause = "free-while-referenced", "held"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        request = invocation.request_ids[row]
        pages = _held(probe, request)
        if not pages:
            return None
        probe.pool.free_pages([_entry(probe, pages[0])])
        return Injection(request, None, pages[0])


class HandedOutTwice(InvocationFault):
    """A page that is in use comes up in the free list."""

    name = "fault:handed-out-twice"
    change = "A page of a request under way is put into the free list, once, to be taken next."
    rule, cause = "double-allocation", "page-in-use"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        request = invocation.request_ids[row]
        pages = _held(probe, request)
        if not pages:
            return None
        probe.pool.available_pages.append(_entry(probe, pages[0]))
        return Injection(None, request, pages[0])


class DoubleFree(InvocationFault):
    """A page is given back that is free."""

    name = "fault:double-free"
    change = "A free page is given back to the pool again, once."
    rule, cause = "double-free", "already-free"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        entry = probe.pool.available_pages[0]
        probe.pool.free_pages([entry])
        return Injection(None, None, entry.index)


class LostPage(InvocationFault):
    """A free page is forgotten."""

    name = "fault:lost-page"
    change = "A page vanishes from the free list, once."
    rule, cause = "free-count-mismatch", "too-few"
    # Its events do not say how many pages the pool has, so one is missed when it is counted.
    instead = {"records": ("state-divergence", "untracked-change")}  # noqa: RUF012

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        probe.pool.available_pages.pop(0)
        return Injection()


class PaddingPageGiven(InvocationFault):
    """The padding page is next in line."""

    name = "fault:padding-page-given"
    control = False  # it needs a circumstance that a sweep may not have
    change = "Page 0 becomes the next page to be handed out, once."
    rule, cause = "padding-page-allocated", "allocated"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        entry, pool = _entry(probe, 0), probe.pool
        if not any(page is entry for page in pool.available_pages):
            return None
        pool.available_pages.remove(entry)
        pool.available_pages.append(entry)
        return Injection(None, None, 0)


class _ReferenceFault(Fault):
    """A fault in giving back a reference."""

    needs = frozenset({"allocations", "trie"})
    acts_on: ClassVar[Place] = "cache"
    times: int
    shared: bool
    """Whether another request must hold the node, too."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Have the first release that gives a page's reference back do it wrongly."""
        probe = engine.probe or engine.service.probe()  # type: ignore[union-attr]
        counts = type(probe.cache.root.ref_count)
        decrement = counts.decrement

        def wrong(count: Any) -> Any:
            node = probe.counted_node(count)
            if self.injected is not None or node is None or node is probe.cache.root:
                return decrement(count)
            if (count.count > 1) != self.shared:
                return decrement(count)
            self.injected = Injection(None, None, node.page.index)
            result = count.count
            for _ in range(self.times):
                result = decrement(count)
            return result

        replace_attribute(undo, counts, "decrement", wrong)


class ReferenceLeaked(_ReferenceFault):
    """A reference is not given back."""

    name = "fault:reference-leaked"
    change = "One reference to a node of the trie is not given back."
    rule, cause = "ref-count-mismatch", "not-released"
    times, shared = 0, False


class ReferenceDropped(_ReferenceFault):
    """A reference is given back twice."""

    name = "fault:reference-dropped"
    change = "One reference to a node of the trie is given back twice."
    rule, cause = "ref-count-mismatch", "over-released"
    times, shared = 2, True


class OrphanedLeaf(InvocationFault):
    """The set of leaves has a node that hangs on nothing."""

    name = "fault:orphaned-leaf"
    change = "A node that is not in the trie is put into the set of leaves, once."
    needs = frozenset({"trie"})
    rule, cause = "leaf-set-mismatch", "unlinked-node"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        page = _held(probe, invocation.request_ids[row])[-1]
        kind = type(probe.cache.root)
        probe.cache.leaves.add(kind(tokens=(1, 2, 3), page=_entry(probe, page)))
        return Injection(None, None, None)


class MissingLeaf(InvocationFault):
    """Eviction does not know of a leaf."""

    name = "fault:missing-leaf"
    change = "A leaf of the trie is taken out of the set of leaves, once."
    needs = frozenset({"trie"})
    rule, cause = "leaf-set-mismatch", "missing-leaf"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        for leaf in list(probe.cache.leaves):
            if not leaf.children and leaf.parent is not None:
                probe.cache.leaves.discard(leaf)
                return Injection(None, None, leaf.page.index)
        return None


class WrongKey(InvocationFault):
    """A node stands where its tokens do not lead."""

    name = "fault:wrong-key"
    change = "A node is filed under other tokens than its own, once."
    needs = frozenset({"trie"})
    rule, cause = "state-divergence", "wrong-key"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        children = probe.cache.root.children
        for key, node in list(children.items()):
            children[(*key[:-1], key[-1] + 1)] = children.pop(key)
            return Injection(None, None, node.page.index)
        return None


class StalePrefix(InvocationFault):
    """The trie serves a page for a prefix that it does not hold."""

    name = "fault:stale-prefix"
    change = "Two nodes of the trie exchange their pages, once."
    needs = frozenset({"trie"})
    rule, cause = "cached-prefix-mismatch", "other-prefix"
    control = False  # it shows only if one of the two is looked up again

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        nodes = [n for n in probe.cache.root.children.values() if n.ref_count.count <= 0]
        if len(nodes) < 2:
            return None
        one, other = nodes[:2]
        one.page, other.page = other.page, one.page
        return Injection(None, None, None)


class EvictReferenced(InvocationFault):
    """A node is evicted that a request refers to."""

    name = "fault:evict-referenced"
    change = "A node that a request refers to is taken out of the trie, once."
    needs = frozenset({"trie"})
    rule, cause = "evicted-while-referenced", "referenced-node"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        for leaf in list(probe.cache.leaves):
            in_place = leaf.parent is not None and leaf.parent.children.get(leaf.tokens) is leaf
            if in_place and leaf.ref_count.count > 0:
                leaf.unlink()
                probe.cache.leaves.remove(leaf)
                return Injection(None, None, leaf.page.index)
        return None


class CopiedShort(InvocationFault):
    """A copied page lacks what its source has last."""

    name = "fault:copied-short"
    change = "A page is copied and its last slot left out, once; the copy is freed again."
    rule, cause = "partial-copy", "missing-slots"
    control = False  # a sweep does not look into the pages
    part: ClassVar[int] = 1024
    """The last one of so many parts of the page is missing."""

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        pool, source = probe.pool, self.source(invocation, row, probe)
        if source is None:
            return None
        tables = pool.page_tables
        # Beneath whoever watches the method, so that only the bytes tell.
        pool.page_tables = [_ShortTable(table, self.part) for table in tables]
        try:
            if hasattr(pool, "copy_page"):
                target = pool.copy_page(_entry(probe, source))
            else:
                [target] = pool.acquire_free_pages(1)
                pool.copy_page_index(source, target.index)
        finally:
            pool.page_tables = tables
        pool.free_pages([target])
        return Injection(None, None, target.index)

    def source(self, invocation: PendingInvocation, row: int, probe: Any) -> int | None:
        """Return the page to be copied."""
        return _held(probe, invocation.request_ids[row])[0]


class _ShortTable:
    """A page table whose pages are copied but for the last one of so many parts."""

    def __init__(self, table: Any, parts: int) -> None:
        self._table, self._parts = table, parts

    def view(self, page: int) -> _ShortView:
        """Return one page."""
        return _ShortView(self._table.view(page), self._parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


class _ShortView:
    """A page of such a table."""

    def __init__(self, view: Any, parts: int) -> None:
        self.view, self._parts = view, parts

    def copy_from(self, source: Any) -> None:
        """Copy another page's elements, but for the last part; layers lie one after the other."""
        with source.view.map(read=True) as mapped:
            elements = list(mapped.items)
        missing = max(1, len(elements) // self._parts)
        elements[-missing:] = [0] * missing
        with self.view.map(write=True) as mapped:
            mapped.items = elements

    def map(self, **how: Any) -> Any:
        """Map the page's elements."""
        return self.view.map(**how)


class NanInPaddingPage(InvocationFault):
    """The page that masked slots are read from holds NaN."""

    name = "fault:nan-in-padding-page"
    change = "Page 0 is filled with NaN, once."
    rule, cause = "nonfinite-kv", "padding-page"
    control = False  # a sweep does not look into the pages

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        if not (invocation.arrays["block_tables"][: invocation.real] == 0).any():
            return None
        fill_page(probe.pool, 0, float("nan"))
        return Injection(None, None, 0)


class WrittenAfterFree(InvocationFault):
    """A page is written after it was freed."""

    name = "fault:written-after-free"
    change = "A page in quarantine is filled with ones, once; the treatment must be on for it."
    rule, cause = "write-after-free", "quarantined-page"
    control = False  # a sweep does not look into the pages

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        resting = resting_pages(probe.pool)
        if not resting:
            return None
        fill_page(probe.pool, resting[0], 1.0)
        return Injection(None, None, resting[0])


CACHE_FAULTS = (
    FreeWhileUsed, HandedOutTwice, DoubleFree, LostPage, PaddingPageGiven, ReferenceLeaked,
    ReferenceDropped, OrphanedLeaf, MissingLeaf, WrongKey, StalePrefix, EvictReferenced,
    CopiedShort, NanInPaddingPage, WrittenAfterFree,
)  # fmt: skip
