"""Faults in what a mask hides, in the trie's own pointers, and in a cache's notes of its pages."""

from __future__ import annotations

from typing import Any

from analysis.shortfin.cache.base import indices
from analysis.treatments.faults.base import Injection, InvocationFault, another
from analysis.treatments.invocations import PendingInvocation

# -- the table beyond the length ---------------------------------------------------------------


def _place_beyond(invocation: PendingInvocation, row: int, probe: Any) -> int | None:
    """Return the first place of a row's table that its length does not need, None if there is none.

    One that holds padding, so that nothing of the request's is overwritten.
    """
    table = invocation.arrays["block_tables"][row]
    stride = int(probe.cache.tokens_per_page)
    start = invocation.arrays.get("start_positions")
    decode = invocation.phase == "decode" and start is not None
    length = int(start[row]) + 1 if decode else int(invocation.arrays["seq_lens"][row])  # type: ignore[index]
    blocks = -(-length // stride)
    return next((place for place in range(blocks, len(table)) if table[place] == 0), None)


def _anothers(invocation: PendingInvocation, row: int, probe: Any) -> tuple[str, int] | None:
    """Return a request in another row and a page that it alone holds."""
    other = another(invocation, row)
    if other is None:
        return None
    held = probe.holdings()
    mine = set(held.get(invocation.request_ids[row], ()))
    name = invocation.request_ids[other]
    pages = [p for p in held.get(name, ()) if p not in mine and p != 0]
    sharers = [r for r, theirs in held.items() if r != name and set(theirs) & set(pages[-1:])]
    return (name, pages[-1]) if pages and not sharers else None


class FreePageBeyond(InvocationFault):
    """A row's table names a free page where its mask hides it."""

    name = "fault:free-page-beyond"
    control = False  # it needs a circumstance that a sweep may not have
    change = "Beyond one decode row's length its block table has a free page, once."
    rule, cause = "block-table-padding", "free-page"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        place, free = _place_beyond(invocation, row, probe), indices(probe.pool.available_pages)
        if place is None or not free[1:]:
            return None
        invocation.arrays["block_tables"][row, place] = free[1]
        return Injection(invocation.request_ids[row], None, free[1])


class FreePageBeyondPrompt(FreePageBeyond):
    """The same in a prefill, where padding is written there."""

    name = "fault:free-page-beyond-prompt"
    control = False  # it needs a circumstance that a sweep may not have
    change = "Beyond one prompt's length its block table has a free page, once."
    rule, cause = "block-table-padding", "free-page"
    phase, after = "prefill", 0


class OthersPageBeyond(InvocationFault):
    """A row's table names another request's page where its mask hides it."""

    name = "fault:others-page-beyond"
    control = False  # it needs a circumstance that a sweep may not have
    change = "Beyond one decode row's length its block table has another request's page, once."
    rule, cause = "block-table-padding", "foreign-page"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        place, found = _place_beyond(invocation, row, probe), _anothers(invocation, row, probe)
        if place is None or found is None:
            return None
        other, page = found
        invocation.arrays["block_tables"][row, place] = page
        return Injection(invocation.request_ids[row], other, page)


class OthersPageBeyondPrompt(OthersPageBeyond):
    """The same in a prefill, where padding is written there."""

    name = "fault:others-page-beyond-prompt"
    control = False  # it needs a circumstance that a sweep may not have
    change = "Beyond one prompt's length its block table has another request's page, once."
    rule, cause = "block-table-padding", "foreign-page"
    phase, after = "prefill", 0


class StaleRestOfTable(InvocationFault):
    """A row's table ends as the one before it in the same row did."""

    name = "fault:stale-rest-of-table"
    change = "Beyond one row's length its block table is left as a freed request had it, once."
    needs = frozenset({"no-trie"})  # with a trie such pages are cached, and free later if at all
    rule, cause = "block-table-padding", "free-page"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._before: dict[int, tuple[str, list[int]]] = {}

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        free = set(indices(probe.pool.available_pages)) - {0}
        place = _place_beyond(invocation, row, probe)
        for owner, pages in self._before.values():
            stale = [page for page in pages if page in free]
            if place is not None and stale and owner not in invocation.request_ids:
                invocation.arrays["block_tables"][row, place] = stale[0]
                return Injection(invocation.request_ids[row], None, stale[0])
        for number, owner in enumerate(invocation.request_ids):
            table = invocation.arrays["block_tables"][number].tolist()
            self._before[hash(owner)] = owner, table
        return None


class NoSuchPageBeyond(InvocationFault):
    """A row's table names a page that the pool has not."""

    name = "fault:no-such-page-beyond"
    change = "Beyond one decode row's length its block table has a page past the pool, once."
    rule, cause = "block-table-padding", "no-such-page"
    control = False  # an engine whose lengths are too long dies of it

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        place, page = _place_beyond(invocation, row, probe), len(probe.pool.attn_page_entries)
        if place is None:
            return None
        invocation.arrays["block_tables"][row, place] = page
        return Injection(invocation.request_ids[row], None, page)


class PageInPaddingRow(InvocationFault):
    """A padding row names a request's page where it neither reads nor writes."""

    name = "fault:page-in-padding-row"
    change = "The last place of a padding row's block table has a request's page, once."
    rule, cause = "block-table-padding", "padding-row"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tables, request = invocation.arrays["block_tables"], invocation.request_ids[row]
        pages = probe.holdings().get(request, [])
        own = [p for p in pages if p and not any(
            p in held for r, held in probe.holdings().items() if r != request)]  # fmt: skip
        if invocation.real >= len(tables) or tables.shape[1] < 2 or not own:
            return None
        tables[invocation.real, -1] = own[0]
        return Injection(request, None, own[0])


# -- the trie's own pointers -------------------------------------------------------------------


def _nodes(probe: Any) -> list[Any]:
    """Return the nodes of the trie but its root, those near it first."""
    found = list(probe.cache.root.children.values())
    for node in found:
        found += node.children.values()
    return found


def _is_below(node: Any, above: Any) -> bool:
    """Tell whether a node is another one, or hangs on it."""
    while node is not None and node is not above:
        node = node.parent
    return node is above


class _NodeFault(InvocationFault):
    needs = frozenset({"trie"})

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        """Damage a node that this row's request uses, so that its end comes upon it."""
        mine = set(probe.holdings().get(invocation.request_ids[row], ()))
        nodes = _nodes(probe)
        for node in nodes:
            if node.page.index in mine:
                other = next((n for n in nodes if not _is_below(n, node)), None)
                return None if other is None else self.damage(probe, node, other)
        return None

    def damage(self, probe: Any, node: Any, other: Any) -> Injection | None:
        """Damage a node; `other` is neither it nor below it."""
        raise NotImplementedError


class ParentElsewhere(_NodeFault):
    """A node points to another parent than the one that has it as a child."""

    name = "fault:parent-elsewhere"
    change = "A node's parent pointer is set to another node of the trie, once."
    rule, cause = "parent-mismatch", "wrong-parent"

    def damage(self, probe: Any, node: Any, other: Any) -> Injection | None:
        node.parent = other
        return Injection(None, None, node.page.index)


class ParentLost(_NodeFault):
    """A node that has its place in the trie points to no parent."""

    name = "fault:parent-lost"
    change = "A node's parent pointer is set to nothing, once, while it stays in its place."
    rule, cause = "parent-mismatch", "wrong-parent"

    def damage(self, probe: Any, node: Any, other: Any) -> Injection | None:
        node.parent = None
        return Injection(None, None, node.page.index)


class ChildElsewhere(_NodeFault):
    """A node is filed under another parent than it points to."""

    name = "fault:child-elsewhere"
    change = "A node is moved among another node's children, once, and its pointer is left."
    rule, cause = "parent-mismatch", "wrong-child"

    def damage(self, probe: Any, node: Any, other: Any) -> Injection | None:
        del node.parent.children[node.tokens]
        other.children[node.tokens] = node
        return Injection(None, None, node.page.index)


class ChildTwice(_NodeFault):
    """Two nodes have one as their child."""

    name = "fault:child-twice"
    change = "A node is put among another node's children too, once."
    rule, cause = "parent-mismatch", "wrong-child"

    def damage(self, probe: Any, node: Any, other: Any) -> Injection | None:
        other.children[node.tokens] = node
        return Injection(None, None, node.page.index)


def _last_node(invocation: PendingInvocation, row: int, probe: Any) -> Any:
    """Return the node that a row's request refers to, None if it has none or it is the root."""
    request = invocation.request_ids[row]
    node = probe.last_node(request)
    return None if node is probe.cache.root else node


class ReferenceTaken(InvocationFault):
    """A request goes on while nothing keeps its cached pages from eviction."""

    name = "fault:reference-taken"
    control = False  # it needs a circumstance that a sweep may not have
    change = "The only reference to a node that a decode of one request uses is given back, once."
    needs = frozenset({"trie"})
    rule, cause = "unprotected-page", "no-reference"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        node = _last_node(invocation, row, probe)
        if node is None or node.ref_count.count != 1 or node.children:
            return None
        self.take(node)
        return Injection(invocation.request_ids[row], None, node.page.index)

    def take(self, node: Any) -> None:
        """Give the reference back by the engine's own method."""
        node.ref_count.decrement()


class ReferenceTakenQuietly(ReferenceTaken):
    """The same where no operation does it, so that only the engine's own count tells."""

    name = "fault:reference-taken-quietly"
    control = False  # it needs a circumstance that a sweep may not have
    change = "The only reference to a node that one request uses is set to none, once."
    rule, cause = "unprotected-page", "no-reference"

    def take(self, node: Any) -> None:
        node.ref_count.count = 0


# -- a cache's notes of its pages --------------------------------------------------------------


class EntryLost(InvocationFault):
    """The cache's list of allocated pages lacks one that a request holds."""

    name = "fault:entry-lost"
    change = "A page that a request has in stock is taken off the cache's list, once."
    needs = frozenset({"records"})
    rule, cause = "allocation-list-mismatch", "held-page-missing"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        request = invocation.request_ids[row]
        stock = probe.stock(request)
        entries = [e for e in probe.cache._allocated_pages if e.index in stock[-1:]]
        if len(entries) != 1:
            return None
        probe.cache._allocated_pages.remove(entries[0])
        return Injection(request, None, entries[0].index)


class _ListFault(InvocationFault):
    needs = frozenset({"records", "trie"})


class EntryStale(_ListFault):
    """The cache's list of allocated pages has one that is free."""

    name = "fault:entry-stale"
    change = "A free page is put on the cache's list of allocated pages, once."
    rule, cause = "allocation-list-mismatch", "listed-and-free"
    control = False  # a sweep takes too few snapshots to see it

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        entry = probe.pool.available_pages[0]
        probe.cache._allocated_pages.append(entry)
        return Injection(None, None, entry.index)


class EntryTwice(_ListFault):
    """The cache's list of allocated pages has one twice."""

    name = "fault:entry-twice"
    change = "A page on the cache's list of allocated pages is put there again, once."
    rule, cause = "allocation-list-mismatch", "listed-twice"
    control = False  # a sweep takes too few snapshots to see it

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        held = set(probe.holdings().get(invocation.request_ids[row], ()))
        for entry in probe.cache._allocated_pages:
            if entry.index in held:
                probe.cache._allocated_pages.append(entry)
                return Injection(invocation.request_ids[row], None, entry.index)
        return None


class EntryCached(_ListFault):
    """The cache's list of allocated pages has one that the trie serves."""

    name = "fault:entry-cached"
    change = "A page of the trie is put on the cache's list of allocated pages, once."
    rule, cause = "allocation-list-mismatch", "listed-and-cached"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        held = {page for pages in probe.holdings().values() for page in pages}
        idle = [node.page for node in _nodes(probe) if node.page.index not in held]
        if not idle:
            return None
        probe.cache._allocated_pages.append(idle[0])
        return Injection(None, None, idle[0].index)


class FreePageAside(_ListFault):
    """A free page is to be freed as a duplicate."""

    name = "fault:free-page-aside"
    change = "A free page is put among the duplicates that are freed next, once."
    rule, cause = "double-free", "already-free"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        entry = probe.pool.available_pages[0]
        probe.cache._duplicated_pages.append(entry)
        return Injection(None, None, entry.index)


class AllocationHasFreePage(InvocationFault):
    """A request's own list of pages has one that is free."""

    name = "fault:allocation-has-free-page"
    change = "A free page is put at the end of one request's list of pages, once."
    needs = frozenset({"allocations"})
    rule, cause = "free-while-referenced", "held-after-free"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        allocation = invocation.process.exec_requests[row].allocation
        entry = probe.pool.available_pages[0]
        allocation._pages = type(allocation._pages)([*allocation._pages, entry])
        return Injection(invocation.request_ids[row], None, entry.index)


class AllocationLosesPage(InvocationFault):
    """A request's own list of pages lacks its last one, so it takes another in its place."""

    name = "fault:allocation-loses-page"
    change = "The last page of one request's list of pages is taken off it, once."
    needs = frozenset({"allocations"})
    rule, cause = "wrong-kv-read", "uninitialized"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        allocation = invocation.process.exec_requests[row].allocation
        if (int(invocation.arrays["start_positions"][row]) + 1) % probe.cache.tokens_per_page < 4:
            return None  # it would lose a page that has hardly anything in it
        allocation._pages = allocation._pages[:-1]
        return Injection(invocation.request_ids[row])


# -- locks -------------------------------------------------------------------------------------


class LockKept(InvocationFault):
    """A thread of the engine takes the pool's lock and does not give it back."""

    name = "fault:lock-kept"
    change = "The lock of the pool is taken on the engine's thread, once, and not released."
    rule, cause = "stuck-request", "lock-held"
    control = False  # its trial would hang until its deadline

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        probe.pool._lock.acquire(timeout=1.0)
        return Injection()


SHAPE_FAULTS = (
    FreePageBeyond, FreePageBeyondPrompt, OthersPageBeyond, OthersPageBeyondPrompt,
    StaleRestOfTable, NoSuchPageBeyond, PageInPaddingRow, ParentElsewhere, ParentLost,
    ChildElsewhere, ChildTwice, ReferenceTaken, ReferenceTakenQuietly, EntryLost, EntryStale,
    EntryTwice, EntryCached, FreePageAside, AllocationHasFreePage, AllocationLosesPage, LockKept,
)  # fmt: skip
