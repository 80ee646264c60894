"""Observes a cache in which requests hold pages with a decoder's records and page manager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, PageManager

from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.decoders import DecoderProbe, current_request
from analysis.shortfin.cache.probe import CURRENT_REQUEST, objects_of
from analysis.shortfin.hooks import Hooks

_OPERATIONS: dict[str, str | None] = {
    "lookup": "lookup",
    "allocate": "allocate",
    "publish_pages_for_tokens": "publish",
    "release_pages": "release",
    "get_allocated_pages": None,
    "free_allocated_pages": "free",
    "free_cache_pages": "free",
}
"""Operation of each method of the cache; None for one without changes."""


@dataclass
class _Pending:
    """A pending request, with its objects that may hold pages."""

    decoder: Any
    manager: Any = None
    seen: tuple[Any, ...] = ()
    """The manager's pages at the last event."""
    unpublished: list[int] | None = None
    """After its last publication, its pages that are neither published nor duplicates.

    The others belong to the cache, which may evict and free them before the request ends.
    """

    @property
    def records(self) -> list[Any]:
        """The decoder's unreleased records."""
        records = list(self.decoder._allocated_cach_recs.values())
        return [record for record in records if record is not None]

    @property
    def stock(self) -> list[int]:
        """Pages that the manager has allocated but not used."""
        return [] if self.manager is None else list(self.manager._free_pages)

    @property
    def is_over(self) -> bool:
        """Whether one of its records was released, which is a decoder's last operation."""
        return any(record is None for record in self.decoder._allocated_cach_recs.values())

    def publish_last(self, duplicates: set[int]) -> None:
        """Record that the request has computed and published everything."""
        published = {page for record in self.records for page in indices(record.pages)}
        given = published | duplicates | set(self.stock)
        self.unpublished = [page for page in self.pages() if page not in given]

    def is_served_by(self, manager: Any) -> bool:
        """Return whether a new page manager got its first pages from the decoder's records."""
        own = [*manager._shared_pages, *(page for beam in manager._beam_page_ids for page in beam)]
        pages = {page for record in self.records for page in indices(record.pages)}
        return self.manager is None and bool(own) and own[0] in pages

    def moved(self) -> bool:
        """Return whether the manager's pages changed; most steps do not change them."""
        beams = [beam[-1:] for beam in self.manager._beam_page_ids]
        seen = (len(self.manager._free_pages), beams)
        moved, self.seen = seen != self.seen, seen
        return moved

    def pages(self) -> list[int]:
        """Return its pages, each once; after the first release, only the manager's unused pages."""
        held: list[int] = []
        if self.is_over:
            pass
        elif self.unpublished is not None:
            held += self.unpublished
        else:
            for record in self.records:
                held += indices(record.pages)
            if self.manager is not None:
                held += self.manager._shared_pages
                for beam in self.manager._beam_page_ids:
                    held += beam
        return list(dict.fromkeys([*held, *self.stock]))


class RecordProbe(DecoderProbe):
    """Tracks the decoders of pending requests, with their records."""

    _requests: dict[str, _Pending]

    def pending_of(self, decoder: Any) -> _Pending:
        return _Pending(decoder)

    def last_node(self, request_id: str) -> Any:
        pending = self._requests.get(request_id)
        return next((r.last_cached_node for r in pending.records), None) if pending else None

    @property
    def allocated_entries(self) -> Any:
        """The cache's live list of allocated pages."""
        return self.cache._allocated_pages

    @property
    def duplicate_entries(self) -> Any:
        """The cache's live list of duplicates to be freed."""
        return self.cache._duplicated_pages

    def find_requests(self) -> None:
        for decoder in objects_of(LlmDecoder):
            # A decoder that has not begun, or has ended, holds no pages.
            pending = _Pending(decoder)
            if decoder._page_cache is self.cache and pending.records and not pending.is_over:
                self._requests.setdefault(decoder._rid, pending)
        for manager in objects_of(PageManager):
            if manager._page_cache is self.cache:
                for pending in self._requests.values():
                    if pending.is_served_by(manager):
                        pending.manager = manager

    def hook(self, hooks: Hooks) -> None:
        super().hook(hooks)
        self._hook_decoder(hooks)
        for name, operation in _OPERATIONS.items():
            if hasattr(self.cache, name):
                self._hook_operation(hooks, name, operation)
        if hasattr(self.cache, "root"):
            self.hook_match(hooks, "match")
            self.hook_evict(hooks, "evict_pages")

    def check_rows(self, process: Any) -> None:
        if not hasattr(self.cache, "root"):
            return
        for request in self.invocation_requests(process):
            if (pending := self._requests.get(request)) is not None:
                for record in pending.records:
                    self.emit_unprotected(request, record.last_cached_node)

    def _hook_operation(self, hooks: Hooks, name: str, operation: str | None) -> None:
        def duplicates(*args: Any, **named: Any) -> set[int]:
            return set(indices(getattr(self.cache, "_duplicated_pages", ())))

        def published(before: set[int], *rest: Any, **named: Any) -> None:
            added = set(indices(getattr(self.cache, "_duplicated_pages", ()))) - before
            if added:
                self.emit("duplicate", pages=sorted(added))

        def check_listed(pages: list[int], *rest: Any, **named: Any) -> None:
            if pages:
                missing = set(pages) - set(indices(list(self.cache._allocated_pages)))
                if missing:
                    self.emit("unlisted", pages=sorted(missing))

        before: Any = None
        after: Any = None
        if name in ("get_allocated_pages", "free_allocated_pages"):
            before = check_listed
        elif operation == "publish":
            before, after = duplicates, published
        hooks.around(
            self.cache, name, operation, request_of=current_request, before=before, after=after
        )

    def invocation_requests(self, process: Any) -> list[str]:
        requests = process._responder._exec_requests
        return [requests[task.instance_id].rid for task in process._llm_task._task_inputs]

    def _request_of(self, part: Any, *args: Any, **named: Any) -> str | None:
        """Return the request of a decoder or a page manager.

        It is in the context of the task, unless the task began before the hooks were added.
        """
        if (request := CURRENT_REQUEST.get()) is not None:
            return request
        if isinstance(part, LlmDecoder):
            self._requests.setdefault(part._rid, _Pending(part))
            return str(part._rid)
        for request, pending in list(self._requests.items()):
            if pending.manager is part or pending.is_served_by(part):
                pending.manager = part
                return request
        return None

    def _hook_decoder(self, hooks: Hooks) -> None:
        """Report a request's pages after each step that can change them."""

        def held(state: Any, result: Any, error: Any, part: Any, *a: Any, **k: Any) -> None:
            request = self._request_of(part)
            pending = self._requests.get(request or "")
            if request is None or pending is None:
                return
            pages = pending.pages()
            for record in pending.records:
                self.emit_duplicates(request, indices(record.pages))
            hooks.observer.holds(request, pages)
            if not pages and pending.is_over and CURRENT_REQUEST.get() is None:
                self.forget(request)  # its task does not report the end

        def published(
            state: Any, result: Any, error: Any, decoder: Any, req: Any, *a: Any, **k: Any
        ) -> None:
            pending = self._requests.get(self._request_of(decoder) or "")
            last = k.get("publish_incomplete_page", bool(a and a[0]))
            # Without a trie nothing is published, and a request keeps its pages until its release.
            if last and error is None and pending is not None and hasattr(self.cache, "root"):
                pending.publish_last(set(indices(self.cache._duplicated_pages)))
            held(state, result, error, decoder)

        def stepped(state: Any, result: Any, error: Any, manager: Any, *a: Any, **k: Any) -> None:
            pending = self._requests.get(self._request_of(manager) or "")
            if pending is not None and (pending.manager is not manager or pending.moved()):
                held(state, result, error, manager)

        def made(state: Any, result: Any, error: Any, manager: Any, *a: Any, **k: Any) -> None:
            pending = self._requests.get(self._request_of(manager) or "")
            if pending is not None:
                pending.manager = manager
            held(state, result, error, manager)

        def ours(part: Any, *args: Any, **named: Any) -> bool:
            return part._page_cache is self.cache

        def of_new_manager(manager: Any, page_cache: Any, *args: Any, **named: Any) -> bool:
            return page_cache is self.cache

        for owner, name, after in (
            (LlmDecoder, "publish_request", published),
            (LlmDecoder, "create_prefill_req", held),
            (LlmDecoder, "create_decode_reqs", held),
            (LlmDecoder, "free_req_cache", held),
            (PageManager, "update_decode_reqs", stepped),
            (PageManager, "release_pages", held),
        ):
            hooks.around(owner, name, applies=ours, request_of=self._request_of, after=after)
        hooks.around(
            PageManager, "__init__", applies=of_new_manager, request_of=current_request, after=made
        )


PROBE = RecordProbe
