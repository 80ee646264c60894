"""Rules about page states: allocation, free, leaks, page lists, and the quiescent cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from analysis.core.wording import counted, numbered
from analysis.recording.replay import differences
from analysis.recording.writes import PADDING_PAGE
from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule, each
from analysis.sanitizer.state import SERVED, EngineState
from analysis.sanitizer.trace import Event
from analysis.snapshots.snapshot import Snapshot

_SHOWN = 8
_SHARED = "Two requests can hold the page and overwrite each other."


class DoubleAllocation(Rule):
    name = "double-allocation"
    sentence = "Only free pages are allocated, each of them once."
    causes = each("page-in-use same-request", _SHARED)

    def on_acquire(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for place, page in enumerate(event.pages):
            again = page in event.pages[:place]
            if page in state.free and not again:
                continue
            last = state.unaccounted.get(page)
            holders = sorted(state.holders.get(page, ()))
            where = "twice in one operation" if again else f"but is {state.where(page)}"
            what = f"Page {page} is allocated to {event.request_id or 'no request'}, {where}."
            other = holders[0] if holders else last.request_id if last else None
            stack = last.stack if last else None
            yield Finding(
                "page-in-use", what, event.request_id, other, page=page, other_stack=stack
            )

    def on_duplicate_page(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            what = f"{event.request_id} has page {page} twice in its own list."
            yield Finding("same-request", what, event.request_id, page=page)


class DoubleFree(Rule):
    name = "double-free"
    sentence = "Only pages in use are freed."
    causes = {"already-free": _SHARED}

    def on_free(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            if page in state.free:
                what = f"Page {page} is freed, but is already {state.where(page)}."
                yield Finding("already-free", what, event.request_id, page=page)


class FreeWhileReferenced(Rule):
    name = "free-while-referenced"
    sentence = "No request and no node of the trie uses a free page."
    causes = each("held cached held-after-free", _SHARED)

    def on_pages_held(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            if page in state.free:
                what = f"{event.request_id} lists page {page}, but the page is {state.where(page)}."
                yield Finding("held-after-free", what, event.request_id, page=page)

    def on_free(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            others = sorted(state.holders.get(page, set()) - {event.request_id})
            if others and page not in state.quarantined:
                what = f"Page {page} is freed while it is held by {' and '.join(others)}."
                yield Finding("held", what, others[0], event.request_id, page=page)
            if page in state.node_at:
                what = f"Page {page} is freed while it is cached in node {state.node_at[page]}."
                yield Finding("cached", what, event.request_id, page=page)


class FreeCountMismatch(Rule):
    name = "free-count-mismatch"
    sentence = "The pool's number of free pages matches its allocations and frees."
    causes = {"too-few": "The pool lost a page.", "too-many": "The pool can allocate a page twice."}

    def after_acquire(self, state: EngineState, event: Event) -> Iterator[Finding]:
        # With several threads, records may be in another order than the operations.
        if event.free_pages is None or len(state.pool_threads) != 1:
            return
        count, due = event.free_pages, len(state.free) + state.uncounted
        if count != due:
            state.uncounted += count - due  # trust the pool's count from here on
            what = f"The pool has {count} free pages, but its allocations and frees leave {due}."
            page = event.pages[0] if event.pages else None
            cause = "too-few" if count < due else "too-many"
            yield Finding(cause, what, event.request_id, page=page)

    after_free = after_acquire


class PageLeak(Rule):
    name = "page-leak"
    sentence = "When a request has ended, all of its pages are free or cached."
    causes = each(
        "dropped acquired unlinked still-held",
        "The pool lost the page. If this repeats, the pool runs out of pages.",
    )

    def after_done(self, state: EngineState, event: Event) -> Iterator[Finding]:
        # The engine may still run a request that its client gave up; `not-quiescent` checks it.
        if event.outcome not in SERVED:
            return
        own = [p for p, e in state.unaccounted.items() if e.request_id == event.request_id]
        for page in own:
            last = state.unaccounted.pop(page)
            if not state.is_leaked(page):
                continue
            how = {"pages_dropped": "dropped", "acquire": "acquired"}.get(last.kind, "unlinked")
            what = (
                f"{event.request_id} has ended, but its page {page} is neither free nor cached"
                f" ({how} at event {last.seq})."
            )
            yield Finding(how, what, event.request_id, page=page, other_stack=last.stack)
        if held := sorted(state.held.get(event.request, ())):
            what = f"{event.request_id} has ended, but still holds {numbered('page', held)}."
            yield Finding("still-held", what, event.request_id, page=held[0])


class PaddingPageAllocated(Rule):
    name = "padding-page-allocated"
    sentence = f"Page {PADDING_PAGE}, to which padding is written, is never allocated."
    causes = {"allocated": "Padding overwrites the data of the page's owner."}

    def on_acquire(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if PADDING_PAGE in event.pages:
            what = f"Page {PADDING_PAGE} is allocated to {event.request_id or 'no request'}."
            yield Finding("allocated", what, event.request_id, page=PADDING_PAGE)


_LISTS = {
    "held-page-missing": "is held by a request, but not in the cache's list of allocated pages",
    "held-and-free": "is free, but in the list of a request",
    "pending-free-twice": "is twice in the list of duplicates to be freed",
    "pending-free-and-free": "is free, but in the list of duplicates to be freed",
    "pending-free-and-cached": "is cached, but in the list of duplicates to be freed",
    "listed-twice": "is twice in the cache's list of allocated pages",
    "listed-and-free": "is free, but in the cache's list of allocated pages",
    "listed-and-cached": "is cached, but in the cache's list of allocated pages",
}


class AllocationListMismatch(Rule):
    """Checks the page lists that a cache keeps in addition to the pool and the trie.

    With allocations, each request has a list of its pages. With records, the cache has one list of
    all allocated, unpublished pages, and one of duplicates. Without prefix sharing it never removes
    a page from the first list, so only missing pages are detected.
    """

    name = "allocation-list-mismatch"
    sentence = (
        "No page in a list of held, allocated or duplicate pages is free. The cache's list has each"
        " held, uncached page once, and no cached page."
    )
    causes = {
        **dict.fromkeys(_LISTS, "The cache may free the page or list it for a request while another"
                        " request owns it."),
        "held-page-missing": "A lookup of the page by its number fails, and the page is never"
        " freed.",
        "listed-twice": "A lookup of the page by its number lists it twice. The pages after it are"
        " cached under wrong tokens.",
    }  # fmt: skip
    limits = {
        "allocations": "If a list lacks its last page, this is detected only at the next decode.",
        "records": "Without prefix sharing only missing entries are detected, not stale or doubled"
        " ones.",
    }

    def on_unlisted(self, state: EngineState, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            self.is_new("held-page-missing", page)
            what = (
                f"{event.request_id} holds page {page}, but the page is not in the cache's list of"
                " allocated pages."
            )
            yield Finding("held-page-missing", what, event.request_id, page=page)

    def at_snapshot(self, state: EngineState, snapshot: Snapshot) -> Iterator[Finding]:
        cache, cached = snapshot.state, snapshot.node_of_page
        free, pending = set(cache.free), Counter(cache.duplicates)
        live = {r: pages for r, pages in cache.holdings.items() if r in state.under_way}
        held = {page for pages in live.values() for page in pages}
        found = {
            "pending-free-twice": [p for p, n in pending.items() if n > 1],
            "pending-free-and-free": [p for p in pending if p in free],
            "pending-free-and-cached": [p for p in pending if p in cached],
            "held-and-free": sorted(held & free),
        }
        if cache.allocated is not None:
            listed = Counter(cache.allocated)
            missing = held - listed.keys() - cached.keys() - pending.keys()
            found["held-page-missing"] = sorted(missing)
            if snapshot.nodes:
                found["listed-twice"] = [p for p, n in listed.items() if n > 1]
                found["listed-and-free"] = [p for p in listed if p in free]
                found["listed-and-cached"] = [p for p in listed if p in cached]
        for cause, pages in found.items():
            new = [page for page in pages if self.is_new(cause, page)]
            if new:
                more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
                what = f"Page {new[0]}{more} {_LISTS[cause]}."
                holder = next(iter(snapshot.holders.get(new[0], ())), None)
                yield Finding(cause, what, holder, page=new[0])


class NotQuiescent(Rule):
    name = "not-quiescent"
    sentence = "If no request is under way, all pages are free or cached, without references."
    causes = {
        "missing-pages": "The pool has lost the pages.",
        "references": "The nodes are never evicted.",
    }

    def __init__(self) -> None:
        super().__init__()
        self._referenced: set[int] = set()

    def at_quiescence(self, state: EngineState, snapshot: Snapshot) -> Iterator[Finding]:
        leaked = sorted([*snapshot.pages("leaked"), *snapshot.pages("live")])
        if new := [page for page in leaked if self.is_new(page)]:
            counts = snapshot.counts
            what = (
                f"No request is under way, but {numbered('page', leaked, most=_SHOWN)} of"
                f" {snapshot.page_count} are missing: {counts['free']} are free and"
                f" {counts['cached']} cached."
            )
            yield Finding("missing-pages", what, page=new[0])
        self._referenced.intersection_update(node.node for node in snapshot.nodes)
        for node in snapshot.nodes:
            if node.ref_count > 0 and node.parent is not None and node.node not in self._referenced:
                self._referenced.add(node.node)
                has = counted(node.ref_count, "reference")
                label = f"node {node.node} (page {node.page})"
                what = f"No request is under way, but {label} has {has}."
                yield Finding("references", what, page=node.page)


class Reconciliation(Rule):
    name = "state-divergence"
    sentence = "The cache matches its recorded operations, and no page is in two states."
    causes = dict.fromkeys(
        ("wrong-key", "two-states", "untracked-change"),
        "The cache changed without a recorded operation: later findings may be wrong.",
    )

    def at_quiescence(self, state: EngineState, snapshot: Snapshot) -> Iterator[Finding]:
        page = next(iter(snapshot.conflict_pages), None)
        for conflict in snapshot.conflicts:
            cause = "wrong-key" if conflict.code == "wrong-key" else "two-states"
            yield Finding(cause, str(conflict), page=page)
        derived = state.snapshot()
        if derived.counts == snapshot.counts and len(derived.nodes) == len(snapshot.nodes):
            return
        for difference in differences(derived, snapshot)[:3]:
            what = f"The cache does not match its recorded operations: {difference}."
            yield Finding("untracked-change", what)
