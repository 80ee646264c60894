"""Observes a cache in which requests hold pages with a decoder's records and page manager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shortfin_apps.llm.components.batching.modes.default import LlmInvocationProcess
from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, PageManager, TokenSelector
from shortfin_apps.llm.components.device_array_cache import Allocation

from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.invocations import CURRENT_INVOCATION, FinishedInvocation
from analysis.shortfin.cache.probe import CURRENT_REQUEST, BaseProbe, objects_of
from analysis.shortfin.hooks import Hooks
from analysis.shortfin.verify import raw

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


class RecordProbe(BaseProbe):
    """Tracks the decoders of pending requests; each runs in its request's task."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._requests: dict[str, _Pending] = {}
        self._invocations: dict[int, list[tuple[Any, FinishedInvocation]]] = {}
        """Unfinished calls by their first argument, each with its process."""

    def holdings(self) -> dict[str, list[int]]:
        return {request: pending.pages() for request, pending in list(self._requests.items())}

    def last_node(self, request_id: str) -> Any:
        pending = self._requests.get(request_id)
        return next((r.last_cached_node for r in pending.records), None) if pending else None

    def stock(self, request_id: str) -> list[int]:
        pending = self._requests.get(request_id)
        return pending.stock if pending else []

    @property
    def allocated_entries(self) -> Any:
        """The cache's live list of allocated pages."""
        return self.cache._allocated_pages

    @property
    def duplicate_entries(self) -> Any:
        """The cache's live list of duplicates to be freed."""
        return self.cache._duplicated_pages

    def note_request(self, part: Any) -> None:
        self._requests[part._rid] = _Pending(part)

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

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._requests.pop(request_id, None)

    def hook(self, hooks: Hooks) -> None:
        self.hook_requests(hooks, LlmDecoder, self._begin)
        self._hook_decoder(hooks)
        for name, operation in _OPERATIONS.items():
            if hasattr(self.cache, name):
                self._hook_operation(hooks, name, operation)
        if hasattr(self.cache, "root"):
            self.hook_match(hooks, "match")
            self.hook_evict(hooks, "evict_pages")

        def copied(state: Any, result: Any, error: Any, src_page: int, dst_page: int) -> None:
            if error is None:
                value = self.copy_differs(src_page, dst_page)
                self.emit("copy", pages=[src_page, dst_page], value=value)

        hooks.around(self.pool, "copy_page_index", "copy", after=copied)

        ours = (self.native.prefill_functions, self.native.decode_functions)

        def started(process: Any) -> None:
            if not any(process._functions is functions for functions in ours):
                return  # of another engine
            self.starts_invocation(process)
            if not hasattr(self.cache, "root"):
                return
            for request in self.invocation_requests(process):
                pending = self._requests.get(request)
                for record in (
                    () if pending is None else pending.decoder._allocated_cach_recs.values()
                ):
                    if record is not None:
                        self.emit_unprotected(request, record.last_cached_node)

        def ended(state: Any, process: Any) -> None:
            # After an error, its arguments are not released.
            for key, calls in list(self._invocations.items()):
                if any(owner is process for owner, _ in calls):
                    for _, finished in self._invocations.pop(key, ()):
                        self.finish(finished)

        hooks.around_task(LlmInvocationProcess, "run", before=started, after=ended)
        self._hook_release(hooks)
        self._hook_choice(hooks)

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
        hooks.around(self.cache, name, operation, request_of=_current, before=before, after=after)

    def invocation_requests(self, process: Any) -> list[str]:
        requests = process._responder._exec_requests
        return [requests[task.instance_id].rid for task in process._llm_task._task_inputs]

    def returned_invocation(self, finished: FinishedInvocation) -> None:
        # The arrays are released for the next call when the device has finished.
        call = (CURRENT_INVOCATION.get(), finished)
        self._invocations.setdefault(id(finished.arguments[0]), []).append(call)

    def _hook_release(self, hooks: Hooks) -> None:
        def wrap(release: Any) -> Any:
            def releasing(allocation: Any) -> Any:
                try:
                    for _, finished in self._invocations.pop(id(allocation._device), ()):
                        self.finish(finished)
                except Exception as error:
                    hooks.observer.fault(error)
                return release(allocation)

            return releasing

        hooks.wrap(Allocation, "release", wrap)
        hooks.also(self._invocations.clear)

    def _hook_choice(self, hooks: Hooks) -> None:
        """Report the logits from which each token of an answer was chosen."""
        observer = hooks.observer

        def report(selector: Any, request: str, logits: Any, index: Any, tokens: Any) -> None:
            try:
                token = _chosen(selector, tokens) if index is None else None
                self.emit_chosen(request, raw(logits), token)
            except Exception as error:
                observer.fault(error)
                self.emit("chosen", request_id=request)  # its logits are unknown

        def wrap(step: Any) -> Any:
            def stepping(selector: Any, logits: Any, indices: Any) -> Any:
                chosen = step(selector, logits, indices)
                try:
                    request = CURRENT_REQUEST.get()
                    if request in self._requests and observer.verifies and len(logits) == 1:
                        report(selector, request, logits[0], indices[0], chosen[1])
                except Exception as error:
                    observer.fault(error)
                return chosen

            return stepping

        hooks.wrap(TokenSelector, "step", wrap)

    def _begin(self, decoder: Any) -> str | None:
        if decoder._page_cache is not self.cache:
            return None
        self.note_request(decoder)
        return str(decoder._rid)

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
            PageManager, "__init__", applies=of_new_manager, request_of=_current, after=made
        )


def _current(*args: Any, **named: Any) -> str | None:
    return CURRENT_REQUEST.get()


def _chosen(selector: Any, tokens: Any) -> int | None:
    """Return the token that a step chose; None if the selection is not greedy."""
    config = selector._decode_config
    kept = config.temperature in (None, 1.0) and config.logits_normalization.name != "SOFTMAX"
    if config.num_beams > 1 or not kept:
        return None
    # The token that ends an answer is not in the list of continuations.
    return int(tokens[0]) if len(tokens) else int(selector._eos_token_id)


PROBE = RecordProbe
