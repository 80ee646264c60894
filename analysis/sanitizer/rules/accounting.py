"""In whose hands every page is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.world import ENDED_WELL, PADDING_PAGE, Event, World
from analysis.snapshots.snapshot import Snapshot


class DoubleAllocation(Rule):
    """A page is allocated once until it is freed."""

    name = "double-allocation"
    sentence = "An allocated page was free, and is in one allocation once."

    def on_acquire(self, world: World, event: Event) -> Iterator[Finding]:
        for place, page in enumerate(event.pages):
            again = page in event.pages[:place]
            if page in world.free and not again:
                continue
            owed = world.owed.get(page)
            holders = sorted(world.holders.get(page, ()))
            other = holders[0] if holders else owed.request_id if owed else None
            yield Finding(
                cause="page-in-use",
                message=f"{event.request_id or 'Somebody'} is given page {page}"
                + (" twice at once." if again else f", which is {world.where(page)}."),
                request_id=event.request_id,
                other_request_id=other,
                page=page,
                other_stack=owed.event.stack if owed else None,
            )

    def on_duplicate_page(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            yield Finding(
                cause="same-request",
                message=f"{event.request_id} holds page {page} twice in its own list.",
                request_id=event.request_id,
                page=page,
            )


class DoubleFree(Rule):
    """A page is freed once."""

    name = "double-free"
    sentence = "A freed page was allocated."

    def on_free(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            if page in world.free:
                yield Finding(
                    cause="already-free",
                    message=f"Page {page} is freed, and was free already.",
                    request_id=event.request_id,
                    page=page,
                )


class FreeWhileReferenced(Rule):
    """A page is free or in use, never both."""

    name = "free-while-referenced"
    sentence = "No request and no node of the trie references a free page."

    def on_pages_held(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            if page in world.free:
                yield Finding(
                    cause="held-after-free",
                    message=f"{event.request_id} has page {page} on its list from now on, which is"
                    " free.",
                    request_id=event.request_id,
                    page=page,
                )

    def on_free(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            others = sorted(world.holders.get(page, set()) - {event.request_id})
            if others and page not in world.resting:
                yield Finding(
                    cause="held",
                    message=f"Page {page} is freed while {' and '.join(others)}"
                    f" hold{'s' if len(others) == 1 else ''} it.",
                    request_id=others[0],
                    other_request_id=event.request_id,
                    page=page,
                )
            if page in world.node_at:
                yield Finding(
                    cause="cached",
                    message=f"Page {page} is freed while node {world.node_at[page]} of the trie"
                    " still serves it.",
                    request_id=event.request_id,
                    page=page,
                )


class FreeCount(Rule):
    """The pool has as many free pages as its operations leave it."""

    name = "free-count-mismatch"
    sentence = "The pool's number of free pages follows from its allocations and frees."

    def after_acquire(self, world: World, event: Event) -> Iterator[Finding]:
        # Several threads record in another order than they act, then the numbers may differ.
        if event.free_pages is None or len(world.pool_threads) > 1:
            return
        counted, due = event.free_pages, len(world.free) + world.uncounted
        if counted != due:
            world.uncounted += counted - due  # from then on the pool's count is the right one
            yield Finding(
                cause="too-few" if counted < due else "too-many",
                message=f"The pool has {counted} free pages where {due} are due.",
                request_id=event.request_id,
                page=event.pages[0] if event.pages else None,
            )

    after_free = after_acquire


class Leak(Rule):
    """When a request has ended, its pages are free or cached."""

    name = "page-leak"
    sentence = "When a request has ended, none of its pages is left in nobody's hands."

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        # The engine may still be at work on one that was given up; it is looked at at rest.
        if event.outcome not in (*ENDED_WELL, "empty"):
            return
        lost = [p for p, owed in world.owed.items() if owed.request_id == event.request_id]
        for page in lost:
            owed = world.owed.pop(page)
            if not world.is_lost(page):
                continue
            how = {"pages_dropped": "dropped", "acquire": "acquired"}.get(
                owed.event.kind, "unlinked"
            )
            yield Finding(
                cause=how,
                message=f"Page {page} of {event.request_id} was {how} in event"
                f" {owed.event.seq} and is in nobody's hands now that the request has ended.",
                request_id=event.request_id,
                page=page,
                other_stack=owed.event.stack,
            )
        held = sorted(world.held.get(event.request_id or "", ()))
        if held:
            yield Finding(
                cause="still-held",
                message=f"{event.request_id} has ended and still holds pages"
                f" {', '.join(map(str, held))}.",
                request_id=event.request_id,
                page=held[0],
            )


class PaddingPage(Rule):
    """The page that padding is written to belongs to nobody."""

    name = "padding-page-allocated"
    sentence = f"Page {PADDING_PAGE}, which padding is written to, is never given to a request."

    def on_acquire(self, world: World, event: Event) -> Iterator[Finding]:
        if PADDING_PAGE in event.pages:
            yield Finding(
                cause="allocated",
                message=f"{event.request_id or 'Somebody'} is given page {PADDING_PAGE}, which"
                " padding rows and padded block tables write to.",
                request_id=event.request_id,
                page=PADDING_PAGE,
            )


class AllocationLists(Rule):
    """What a cache notes of its pages beside the pool and the trie.

    On 3.1 each request has a list of its pages. 3.9 keeps one of all pages that it gave out and did
    not publish, by which it finds and frees them, and one of those that it set aside as duplicates.
    Without prefix sharing 3.9 takes no page off its list, ever: there only missing ones show.
    """

    name = "allocation-list-mismatch"
    sentence = (
        "No page on a list of those held, given out or set aside is free; a held one that is not"
        " cached is on the cache's list, once, and no cached one is."
    )

    def __init__(self) -> None:
        self._told: set[tuple[str, int]] = set()

    def on_unlisted(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            self._told.add(("held-page-missing", page))
            yield Finding(
                cause="held-page-missing",
                message=f"Page {page} is asked for by {event.request_id}, which holds it, and the"
                " cache's list of allocated pages lacks it.",
                request_id=event.request_id,
                page=page,
            )

    def look(self, world: World, snapshot: Snapshot) -> Iterator[Finding]:
        state, cached = snapshot.state, snapshot.node_of_page
        free = set(state.free)
        aside = Counter(state.duplicates)
        yield from self._some(
            "pending-free-twice", [p for p, n in aside.items() if n > 1], snapshot
        )
        yield from self._some("pending-free-and-free", [p for p in aside if p in free], snapshot)
        yield from self._some(
            "pending-free-and-cached", [p for p in aside if p in cached], snapshot
        )
        live = {r: pages for r, pages in state.holdings.items() if r in world.under_way}
        held = {page for pages in live.values() for page in pages}
        yield from self._some("held-and-free", sorted(held & free), snapshot)
        if state.allocated is None:
            return
        listed = Counter(state.allocated)
        missing = held - listed.keys() - cached.keys() - aside.keys()
        yield from self._some("held-page-missing", sorted(missing), snapshot)
        if not snapshot.nodes:
            return
        yield from self._some("listed-twice", [p for p, n in listed.items() if n > 1], snapshot)
        yield from self._some("listed-and-free", [p for p in listed if p in free], snapshot)
        yield from self._some("listed-and-cached", [p for p in listed if p in cached], snapshot)

    def _some(self, cause: str, pages: list[int], snapshot: Snapshot) -> Iterator[Finding]:
        new = [page for page in pages if (cause, page) not in self._told]
        if not new:
            return
        self._told.update((cause, page) for page in new)
        holders = snapshot.holders.get(new[0], ())
        others = f", and {len(new) - 1} more" if len(new) > 1 else ""
        yield Finding(
            cause=cause,
            message=f"Page {new[0]}{others}: {_LISTED[cause]}.",
            request_id=holders[0] if holders else None,
            page=new[0],
        )


_LISTED = {
    "held-and-free": "a request has it on its list, and it is free",
    "pending-free-twice": "the cache has it twice among the duplicates to be freed",
    "pending-free-and-free": "the cache has it among the duplicates to be freed, and it is free",
    "pending-free-and-cached": "the cache has it among the duplicates to be freed, and serves it",
    "held-page-missing": "a request holds it, and the cache's list of allocated pages lacks it",
    "listed-twice": "the cache's list of allocated pages has it twice",
    "listed-and-free": "the cache's list of allocated pages still has it, and it is free",
    "listed-and-cached": "the cache's list of allocated pages still has it, and the trie serves it",
}
"""Causes of findings about the cache's lists, in words."""
