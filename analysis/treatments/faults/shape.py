"""Faults in block tables beyond a row's length, in trie pointers and in page lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from analysis.treatments.faults.base import Injection, InvocationFault, Site, fault

# -- the table beyond the length ---------------------------------------------------------------

_beyond = partial(fault, rule="block-table-padding")
_prefill: dict[str, Any] = {"phase": "prefill", "after": 0}


def _place_beyond(site: Site) -> int | None:
    """Return the first index of a row's table beyond its length that is padding."""
    decode = site.invocation.phase == "decode" and "start_positions" in site.arrays
    length = site.start + 1 if decode else int(site.arrays["seq_lens"][site.row])
    blocks = -(-length // site.stride)
    return next((place for place in range(blocks, len(site.table)) if site.table[place] == 0), None)


def _page_of_other(site: Site) -> tuple[int, int] | None:
    """Return another row and a page that only its request holds."""
    other = site.other
    if other is None:
        return None
    held = site.probe.holdings()
    own = set(held.get(site.request, ()))
    name = site.invocation.request_ids[other]
    pages = [page for page in held.get(name, ()) if page not in own and page != 0]
    sharers = [r for r, theirs in held.items() if r != name and set(theirs) & set(pages[-1:])]
    return (other, pages[-1]) if pages and not sharers else None


# The first four are no controls: a sweep may not have the required state.


@_beyond("free-page-beyond", cause="free-page", control=False)
def free_page_beyond(site: Site) -> Injection | None:
    """Puts a free page beyond a decode row's length into its block table, once."""
    place = _place_beyond(site)
    if place is None or len(site.free) < 2:
        return None
    site.table[place] = page = site.free[1].index
    return site.injection(page)


@_beyond("free-page-beyond-prompt", cause="free-page", control=False, **_prefill)
def free_page_beyond_prompt(site: Site) -> Injection | None:
    """Puts a free page beyond a prompt's length into its block table, once."""
    return free_page_beyond(site)


@_beyond("others-page-beyond", cause="foreign-page", control=False)
def others_page_beyond(site: Site) -> Injection | None:
    """Puts another request's page beyond a decode row's length into its table, once."""
    place, found = _place_beyond(site), _page_of_other(site)
    if place is None or found is None:
        return None
    other, page = found
    site.table[place] = page
    return site.injection(page, other)


@_beyond("others-page-beyond-prompt", cause="foreign-page", control=False, **_prefill)
def others_page_beyond_prompt(site: Site) -> Injection | None:
    """Puts another request's page beyond a prompt's length into its block table, once."""
    return others_page_beyond(site)


# With a trie, such pages are cached and rarely free.
@_beyond("stale-rest-of-table", cause="free-page", needs=["no-trie"])
def stale_rest_of_table(site: Site) -> Injection | None:
    """Leaves a freed request's pages beyond a row's length in its block table, once."""
    free = {page.index for page in site.free} - {0}
    place, ids = _place_beyond(site), site.invocation.request_ids
    for owner, pages in site.memory.items():
        stale = [page for page in pages if page in free]
        if place is not None and stale and owner not in ids:
            site.table[place] = stale[0]
            return site.injection(stale[0])
    site.memory.update((owner, site.tables[row].tolist()) for row, owner in enumerate(ids))
    return None


# An engine with too long lengths dies of it.
@_beyond("no-such-page-beyond", cause="no-such-page", control=False)
def no_such_page_beyond(site: Site) -> Injection | None:
    """Puts a page past the pool beyond a decode row's length into its table, once."""
    place, page = _place_beyond(site), len(site.probe.pool.attn_page_entries)
    if place is None:
        return None
    site.table[place] = page
    return site.injection(page)


@_beyond("page-in-padding-row", cause="padding-row")
def page_in_padding_row(site: Site) -> Injection | None:
    """Puts a request's page at the end of a padding row's block table, once."""
    held = dict(site.probe.holdings())
    own = held.pop(site.request, [])
    others = {page for pages in held.values() for page in pages}
    alone = [page for page in own if page and page not in others]
    padding = site.invocation.real
    if padding >= len(site.tables) or site.tables.shape[1] < 2 or not alone:
        return None
    site.tables[padding, -1] = alone[0]
    return site.injection(alone[0])


# -- the trie's own pointers -------------------------------------------------------------------


def _nodes(site: Site) -> list[Any]:
    """Return the nodes of the trie except the root, nearest to the root first."""
    found = list(site.probe.cache.root.children.values())
    for node in found:
        found += node.children.values()
    return found


def _is_below(node: Any, above: Any) -> bool:
    """Return whether a node is `above` or one of its descendants."""
    while node is not None and node is not above:
        node = node.parent
    return node is above


class NodeFault(InvocationFault):
    """A fault in a node that the row's request uses: `function(node, other)`.

    `other` is neither the node nor one of its descendants.
    """

    def inject(self, site: Site) -> Injection | None:
        own, nodes = set(site.probe.holdings().get(site.request, ())), _nodes(site)
        node = next((node for node in nodes if node.page.index in own), None)
        other = next((n for n in nodes if node is not None and not _is_below(n, node)), None)
        if node is None or other is None:
            return None
        type(self).function(node, other)
        return Injection(page=node.page.index)


_pointer = partial(fault, rule="parent-mismatch", kind=NodeFault, needs=["trie"])


@_pointer("parent-elsewhere", cause="wrong-parent")
def parent_elsewhere(node: Any, other: Any) -> None:
    """Sets a node's parent pointer to another node of the trie, once."""
    node.parent = other


@_pointer("parent-lost", cause="wrong-parent")
def parent_lost(node: Any, other: Any) -> None:
    """Sets the parent pointer of a node in the trie to None, once."""
    node.parent = None


@_pointer("child-elsewhere", cause="wrong-child")
def child_elsewhere(node: Any, other: Any) -> None:
    """Moves a node to another node's children without changing its parent pointer, once."""
    del node.parent.children[node.tokens]
    other.children[node.tokens] = node


@_pointer("child-twice", cause="wrong-child")
def child_twice(node: Any, other: Any) -> None:
    """Adds a node to the children of a second node, once."""
    other.children[node.tokens] = node


# -- references of requests --------------------------------------------------------------------


def _take_reference(site: Site, take: Callable[[Any], object]) -> Injection | None:
    """Remove the only reference to the node that the row's request continues from."""
    node = site.probe.last_node(site.request)
    if node is None or node is site.probe.cache.root:
        return None
    if node.ref_count.count != 1 or node.children:
        return None
    take(node.ref_count)
    return site.injection(node.page.index)


_unprotected = partial(
    fault, rule="unprotected-page", cause="no-reference", needs=["trie"], control=False
)


@_unprotected("reference-taken")
def reference_taken(site: Site) -> Injection | None:
    """Releases the only reference to a node that a decode of a request uses, once."""
    return _take_reference(site, lambda count: count.decrement())


@_unprotected("reference-taken-quietly")
def reference_taken_quietly(site: Site) -> Injection | None:
    """Sets the reference count of a node that a request uses to zero, once."""
    return _take_reference(site, lambda count: setattr(count, "count", 0))


# -- lists of pages ----------------------------------------------------------------------------

_listed = partial(fault, rule="allocation-list-mismatch", needs=["records", "trie"])


@_listed("entry-lost", cause="held-page-missing", needs=["records"])
def entry_lost(site: Site) -> Injection | None:
    """Removes a page that a request holds for later from the cache's list, once."""
    last, listed = site.probe.stock(site.request)[-1:], site.probe.allocated_entries
    entries = [entry for entry in listed if entry.index in last]
    if len(entries) != 1:
        return None
    listed.remove(entries[0])
    return site.injection(entries[0].index)


# The next two are no controls: a sweep takes too few snapshots to detect them.


@_listed("entry-stale", cause="listed-and-free", control=False)
def entry_stale(site: Site) -> Injection:
    """Adds a free page to the cache's list of allocated pages, once."""
    site.probe.allocated_entries.append(site.free[0])
    return Injection(page=site.free[0].index)


@_listed("entry-twice", cause="listed-twice", control=False)
def entry_twice(site: Site) -> Injection | None:
    """Adds a page to the cache's list of allocated pages a second time, once."""
    held = set(site.probe.holdings().get(site.request, ()))
    for entry in site.probe.allocated_entries:
        if entry.index in held:
            site.probe.allocated_entries.append(entry)
            return site.injection(entry.index)
    return None


@_listed("entry-cached", cause="listed-and-cached")
def entry_cached(site: Site) -> Injection | None:
    """Adds a cached page to the cache's list of allocated pages, once."""
    held = {page for pages in site.probe.holdings().values() for page in pages}
    idle = [node.page for node in _nodes(site) if node.page.index not in held]
    if not idle:
        return None
    site.probe.allocated_entries.append(idle[0])
    return Injection(page=idle[0].index)


@fault("free-page-aside", "double-free", "already-free", needs=["records", "trie"])
def free_page_aside(site: Site) -> Injection:
    """Adds a free page to the list of duplicates to be freed, once."""
    site.probe.duplicate_entries.append(site.free[0])
    return Injection(page=site.free[0].index)


@fault("allocation-has-free-page", "free-while-referenced", "held-after-free",
       needs=["allocations"])  # fmt: skip
def allocation_has_free_page(site: Site) -> Injection:
    """Adds a free page to the end of a request's list of pages, once."""
    entry = site.free[0]
    site.probe.edit_allocation(site.request, lambda pages: [*pages, entry])
    return site.injection(entry.index)


@fault("allocation-loses-page", "wrong-kv-read", "uninitialized", needs=["allocations"])
def allocation_loses_page(site: Site) -> Injection | None:
    """Removes the last page of a request's list, so that it allocates another, once."""
    if (site.start + 1) % site.stride < 4:
        return None  # its last page is almost empty
    site.probe.edit_allocation(site.request, lambda pages: pages[:-1])
    return site.injection()


# -- locks -------------------------------------------------------------------------------------


# No control: the trial would hang until its deadline.
@fault("lock-kept", "stuck-request", "lock-held", control=False)
def lock_kept(site: Site) -> Injection:
    """Takes the pool's lock on the engine's thread and does not release it, once."""
    site.probe.pool._lock.acquire(timeout=1.0)
    return Injection()
