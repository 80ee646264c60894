"""Observes a cache from which requests allocate, for the prompt and with a page manager."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, PageManager
from shortfin_apps.llm.components.messages import InferencePhase, LlmInferenceExecRequest

from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.decoders import DecoderProbe, current_request
from analysis.shortfin.cache.probe import objects_of
from analysis.shortfin.hooks import Hooks


@dataclass
class _Pending:
    """A pending request, with its objects that hold pages."""

    decoder: Any
    prefill: Any = None
    """Its prefill, which holds the pages of the prompt."""
    manager: Any = None
    """Its page manager, which holds the pages of the answer."""
    freed: set[int] = field(default_factory=set)
    """Pages that it freed through the cache: the objects may still list them."""

    @property
    def stock(self) -> list[int]:
        """Pages that the manager has allocated but not used."""
        manager = self.manager
        return [] if manager is None or not manager._allocated_pages else list(manager._free_pages)

    @property
    def listed(self) -> list[int]:
        """The pages in the lists of its objects."""
        info = None if self.prefill is None else self.prefill.allocated_cache_info
        pages = [] if info is None else indices(info.pages)
        return pages if self.manager is None else [*pages, *indices(self.manager._allocated_pages)]

    def is_served_by(self, manager: Any) -> bool:
        """Return whether a page manager got its first pages from the prefill."""
        own = [*manager._shared_pages, *(page for beam in manager._beam_page_ids for page in beam)]
        return self.manager is None and bool(own) and own[0] in self.listed

    def pages(self) -> list[int]:
        """Return its pages, each once."""
        return [page for page in dict.fromkeys(self.listed) if page not in self.freed]


class RequestProbe(DecoderProbe):
    """Tracks the prefill and the page manager of each pending request."""

    _requests: dict[str, _Pending]

    def pending_of(self, decoder: Any) -> _Pending:
        return _Pending(decoder)

    def note_request(self, part: Any) -> None:
        pending = self._requests.get(part._rid)
        # A treatment may have made its prefill before its task began.
        if pending is None or pending.decoder is not part:
            super().note_request(part)

    def last_node(self, request_id: str) -> Any:
        return None  # requests do not refer to the trie

    def find_requests(self) -> None:
        decoders = {d._rid: d for d in objects_of(LlmDecoder) if d._page_cache is self.cache}
        for item in objects_of(LlmInferenceExecRequest):
            # An ended request has freed the pages of its prompt.
            holds = item.phase is InferencePhase.PREFILL and item.allocated_cache_info is not None
            if holds and item._cache is self.cache and item.rid in decoders:
                self._requests.setdefault(item.rid, _Pending(decoders[item.rid], item))
        for manager in objects_of(PageManager):
            if manager._page_pool is self.pool:
                self._serve(manager)

    def _serve(self, manager: Any) -> str | None:
        """Assign a page manager to its request, and return the request."""
        for request, pending in list(self._requests.items()):
            if pending.manager is manager:
                return request
            if pending.is_served_by(manager):
                pending.manager = manager
                return request
        return None

    def invocation_requests(self, process: Any) -> list[str]:
        return [request.rid for request in process._responder._exec_requests]

    def hook(self, hooks: Hooks) -> None:
        super().hook(hooks)
        for name, operation in (("allocate", "allocate"), ("release_pages", "release")):
            hooks.around(self.cache, name, operation, request_of=current_request)
        self._hook_prompts(hooks)
        self._hook_managers(hooks)

    def _hook_prompts(self, hooks: Hooks) -> None:
        """Report the pages of a prompt when they are allocated and freed."""

        def prefilled(state: Any, item: Any, error: Any, decoder: Any, *args: Any) -> None:
            pending = self._requests.setdefault(str(decoder._rid), _Pending(decoder))
            pending.prefill = item
            self._holds(str(decoder._rid))

        def freeing(item: Any) -> list[int]:
            info = item.allocated_cache_info
            return [] if info is None else indices(info.pages)

        def freed(pages: list[int], result: Any, error: Any, item: Any) -> None:
            pending = self._requests.get(str(item.rid))
            if pending is not None and error is None:
                pending.freed.update(pages)
                self._holds(str(item.rid))

        hooks.around(
            LlmDecoder,
            "create_prefill_req",
            applies=lambda decoder, *args: decoder._page_cache is self.cache,
            request_of=lambda decoder, *args: str(decoder._rid),
            after=prefilled,
        )
        # After a failed invocation, it is called on the invocation's thread, also for a decode.
        hooks.around(
            LlmInferenceExecRequest,
            "free_cache_pages",
            applies=lambda item: item._cache is self.cache,
            request_of=lambda item: str(item.rid),
            before=freeing,
            after=freed,
        )

    def _hook_managers(self, hooks: Hooks) -> None:
        """Report the pages of an answer, which a page manager takes from the pool."""

        def made(state: Any, result: Any, error: Any, manager: Any, *a: Any, **k: Any) -> None:
            pending = self._requests.get(current_request() or "")
            if pending is not None:
                pending.manager = manager

        def changed(state: Any, result: Any, error: Any, manager: Any, *args: Any) -> None:
            if (request := self._request_of(manager)) is not None:
                self._holds(request)

        def ours(manager: Any, *args: Any) -> bool:
            return manager._page_pool is self.pool

        def takes(manager: Any, count: int) -> bool:
            # Called for every new page; it is an operation only if the pool is asked.
            return ours(manager) and count > len(manager._free_pages)

        hooks.around(
            PageManager,
            "__init__",
            applies=lambda manager, page_pool, *args, **named: page_pool is self.pool,
            request_of=current_request,
            after=made,
        )
        for name, operation, applies in (
            ("allocate", "extend", takes),
            ("release_pages", "free", ours),
        ):
            hooks.around(
                PageManager,
                name,
                operation,
                applies=applies,
                request_of=self._request_of,
                after=changed,
            )

    def _request_of(self, manager: Any, *args: Any) -> str | None:
        """Return the request of a page manager.

        It is in the context of the task, unless the task began before the hooks were added.
        """
        return current_request() or self._serve(manager)

    def _holds(self, request: str) -> None:
        """Report the pages that a request holds."""
        assert self.observer is not None
        if (pending := self._requests.get(request)) is None:
            return
        pages = pending.pages()
        self.emit_duplicates(request, [p for p in pending.listed if p not in pending.freed])
        self.observer.holds(request, pages)
        if not pages and current_request() is None:
            self.forget(request)  # its task does not report the end


PROBE = RequestProbe
