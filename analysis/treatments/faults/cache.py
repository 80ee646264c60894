"""Faults in the pool and the trie; most are injected before a decode, on the engine's thread."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from analysis.shortfin.treatment import LiveEngine, replaced
from analysis.treatments.faults.base import Fault, Injection, Site, fault
from analysis.treatments.pages import fill_page

_trie = partial(fault, needs=["trie"])


@fault("free-while-used", "free-while-referenced", "held")
def free_while_used(site: Site) -> Injection | None:
    """Returns a page of a pending request to the pool, once."""
    if not (pages := site.held):
        return None
    site.probe.pool.free_pages([site.entry(pages[0])])
    return site.injection(pages[0])


@fault("handed-out-twice", "double-allocation", "page-in-use")
def handed_out_twice(site: Site) -> Injection | None:
    """Puts a page of a pending request at the head of the free list, once."""
    if not (pages := site.held):
        return None
    site.free.append(site.entry(pages[0]))
    return Injection(None, site.request, pages[0])


@fault("double-free", "double-free", "already-free")
def double_free(site: Site) -> Injection:
    """Frees a free page again, once."""
    entry = site.free[0]
    site.probe.pool.free_pages([entry])
    return Injection(page=entry.index)


# With several threads, the pool's free count is not compared: the loss shows at quiescence.
@fault("lost-page", "free-count-mismatch", "too-few",
       instead=dict.fromkeys(("worker-pool", "phase-workers"),
                             ("state-divergence", "untracked-change")))  # fmt: skip
def lost_page(site: Site) -> Injection:
    """Removes a page from the free list, once."""
    site.free.pop(0)
    return Injection()


@fault("padding-page-given", "padding-page-allocated", "allocated", control=False)
def padding_page_given(site: Site) -> Injection | None:
    """Makes page 0 the next page to be allocated, once."""
    entry, free = site.entry(0), site.free
    if not any(page is entry for page in free):
        return None
    free.remove(entry)
    free.append(entry)
    return Injection(page=0)


def _release_wrongly(
    self: Fault, engine: LiveEngine, undo: ExitStack, *, times: int, shared: bool
) -> None:
    """Release one reference to a node `times` times.

    `shared` requires that another request also holds the node.
    """
    probe = engine.probe or engine.service.probe()

    @replaced(undo, type(probe.cache.root.ref_count), "decrement")
    def wrong(decrement: Any, count: Any) -> Any:
        node = probe.counted_node(count)
        if self.injected is not None or node is None or node is probe.cache.root:
            return decrement(count)
        if (count.count > 1) != shared:
            return decrement(count)
        self.injected = Injection(page=node.page.index)
        result = count.count
        for _ in range(times):
            result = decrement(count)
        return result


_reference = partial(
    fault, rule="ref-count-mismatch", kind=Fault, needs=["allocations", "trie"], acts_on="cache"
)


@_reference("reference-leaked", cause="not-released")
def reference_leaked(self: Fault, engine: LiveEngine, undo: ExitStack) -> None:
    """Does not release one reference to a node of the trie."""
    _release_wrongly(self, engine, undo, times=0, shared=False)


@_reference("reference-dropped", cause="over-released")
def reference_dropped(self: Fault, engine: LiveEngine, undo: ExitStack) -> None:
    """Releases one reference to a node of the trie twice."""
    _release_wrongly(self, engine, undo, times=2, shared=True)


@_trie("orphaned-leaf", "leaf-set-mismatch", "unlinked-node")
def orphaned_leaf(site: Site) -> Injection:
    """Adds a node that is not in the trie to the set of leaves, once."""
    cache = site.probe.cache
    cache.leaves.add(type(cache.root)(tokens=(1, 2, 3), page=site.entry(site.held[-1])))
    return Injection()


@_trie("missing-leaf", "leaf-set-mismatch", "missing-leaf")
def missing_leaf(site: Site) -> Injection | None:
    """Removes a leaf of the trie from the set of leaves, once."""
    for leaf in list(site.probe.cache.leaves):
        if not leaf.children and leaf.parent is not None:
            site.probe.cache.leaves.discard(leaf)
            return Injection(page=leaf.page.index)
    return None


@_trie("wrong-key", "state-divergence", "wrong-key")
def wrong_key(site: Site) -> Injection | None:
    """Stores a node under wrong tokens, once."""
    children = site.probe.cache.root.children
    for key, node in list(children.items()):
        children[(*key[:-1], key[-1] + 1)] = children.pop(key)
        return Injection(page=node.page.index)
    return None


# No control: it is detected only if one of the two is looked up again.
@_trie("stale-prefix", "cached-prefix-mismatch", "other-prefix", control=False)
def stale_prefix(site: Site) -> Injection | None:
    """Swaps the pages of two nodes of the trie, once."""
    children = site.probe.cache.root.children.values()
    nodes = [node for node in children if node.ref_count.count <= 0]
    if len(nodes) < 2:
        return None
    one, other = nodes[:2]
    one.page, other.page = other.page, one.page
    return Injection()


@_trie("evict-referenced", "evicted-while-referenced", "referenced-node")
def evict_referenced(site: Site) -> Injection | None:
    """Removes a node that a request references from the trie, once."""
    leaves = site.probe.cache.leaves
    for leaf in list(leaves):
        in_place = leaf.parent is not None and leaf.parent.children.get(leaf.tokens) is leaf
        if in_place and leaf.ref_count.count > 0:
            leaf.unlink()
            leaves.remove(leaf)
            return Injection(page=leaf.page.index)
    return None


def copy_short(site: Site, source: int, parts: int) -> Injection:
    """Copy a page without its last part of `parts`, and free the copy."""
    pool = site.probe.pool
    tables = pool.page_tables
    # Bypasses the method's hooks, so only the bytes show it.
    pool.page_tables = [_ShortTable(table, parts) for table in tables]
    try:
        if hasattr(pool, "copy_page"):
            target = pool.copy_page(site.entry(source))
        else:
            [target] = pool.acquire_free_pages(1)
            pool.copy_page_index(source, target.index)
    finally:
        pool.page_tables = tables
    pool.free_pages([target])
    return Injection(page=target.index)


class _ShortTable:
    """A page table that copies pages without their last part."""

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
        self.map = view.map

    @property
    def items(self) -> list[Any]:
        """The page's elements, with zeros for the last part; layers are contiguous."""
        with self.view.map(read=True) as mapped:
            elements = list(mapped.items)
        missing = max(1, len(elements) // self._parts)
        elements[-missing:] = [0] * missing
        return elements

    def copy_from(self, source: Any) -> None:
        """Copy another page's elements except the last part."""
        with self.view.map(write=True) as mapped:
            mapped.items = source.items


# The next three are no controls: a sweep does not read the bytes they change.


@fault("copied-short", "partial-copy", "missing-slots", control=False)
def copied_short(site: Site) -> Injection:
    """Copies a page without its last slot and frees the copy, once."""
    return copy_short(site, site.held[0], 1024)


@fault("nan-in-padding-page", "nonfinite-kv", "padding-page", control=False)
def nan_in_padding_page(site: Site) -> Injection | None:
    """Fills page 0 with NaN, once."""
    if not (site.tables[: site.invocation.real] == 0).any():
        return None
    fill_page(site.probe.pool, 0, float("nan"))
    return Injection(page=0)


@fault("written-after-free", "write-after-free", "quarantined-page", control=False)
def written_after_free(site: Site) -> Injection | None:
    """Fills a page in quarantine with ones, once; needs the treatment `quarantine`."""
    pages = [page.index for page, _ in list(site.service.quarantined)]
    if not pages:
        return None
    fill_page(site.probe.pool, pages[0], 1.0)
    return Injection(page=pages[0])
