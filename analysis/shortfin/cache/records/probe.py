"""The cache of 3.9: a request's decoder and page manager hold its pages, not the cache."""

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
"""Methods of the cache by the operation that they are, None for one that changes nothing."""


@dataclass
class _Live:
    """A request under way: what may hold pages for it."""

    decoder: Any
    manager: Any = None
    seen: tuple[Any, ...] = ()
    """What of the manager's pages was told last."""
    left: list[int] | None = None
    """After its last publication, what it has beside what it published or set aside: those are
    the cache's then, which may evict and free them while the request has yet to be put away."""

    @property
    def is_over(self) -> bool:
        """Whether one of its records was given back, which is the last thing a decoder does."""
        return any(record is None for record in self.decoder._allocated_cach_recs.values())

    def finish(self, set_aside: set[int]) -> None:
        """Take note that it has computed all, and published what it computed."""
        published = {page for r in self.decoder._allocated_cach_recs.values() if r is not None
                     for page in indices(r.pages)}  # fmt: skip
        stock = set() if self.manager is None else set(self.manager._free_pages)
        theirs = published | set_aside | stock
        self.left = [page for page in self.pages() if page not in theirs]

    def moved(self) -> bool:
        """Tell whether the manager's pages changed; most steps stay on their page."""
        beams = [beam[-1:] for beam in self.manager._beam_page_ids]
        seen = (len(self.manager._free_pages), beams)
        moved, self.seen = seen != self.seen, seen
        return moved

    def pages(self) -> list[int]:
        """Return its pages, each once.

        When its first record is given back, what remains is what the manager keeps in stock.
        """
        records = list(self.decoder._allocated_cach_recs.values())
        held: dict[int, None] = {}
        if self.left is not None:
            held.update(dict.fromkeys(() if self.is_over else self.left))
        elif not self.is_over:
            for record in records:
                held.update(dict.fromkeys(indices(record.pages)))
            if self.manager is not None:
                held.update(dict.fromkeys(self.manager._shared_pages))
                for beam in self.manager._beam_page_ids:
                    held.update(dict.fromkeys(beam))
        if self.manager is not None:
            held.update(dict.fromkeys(self.manager._free_pages))
        return list(held)


class RecordProbe(BaseProbe):
    """Knows the decoders under way; all that one does is done in its request's own task."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._live: dict[str, _Live] = {}
        self._pending_invocations: dict[int, list[tuple[Any, FinishedInvocation]]] = {}
        """By the first argument: the calls that were made with it, each with its process."""

    def holdings(self) -> dict[str, list[int]]:
        return {request: live.pages() for request, live in list(self._live.items())}

    def last_node(self, request_id: str) -> Any:
        live = self._live.get(request_id)
        records = () if live is None else list(live.decoder._allocated_cach_recs.values())
        return next((r.last_cached_node for r in records if r is not None), None)

    def stock(self, request_id: str) -> list[int]:
        live = self._live.get(request_id)
        return [] if live is None or live.manager is None else list(live.manager._free_pages)

    def note_request(self, part: Any) -> None:
        self._live[part._rid] = _Live(part)

    def find_requests(self) -> None:
        for decoder in objects_of(LlmDecoder):
            # One that has not begun or has ended holds nothing, or lies in the hands of nobody.
            if decoder._page_cache is self.cache and self._is_running(decoder):
                self._live.setdefault(decoder._rid, _Live(decoder))
        for manager in objects_of(PageManager):
            if manager._page_cache is self.cache:
                for live in self._live.values():
                    if live.manager is None and _serves(manager, live.decoder):
                        live.manager = manager

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._live.pop(request_id, None)

    def _is_running(self, decoder: Any) -> bool:
        records = list(decoder._allocated_cach_recs.values())
        return bool(records) and not any(record is None for record in records)

    def hook(self, hooks: Hooks) -> None:
        self._hook_requests(hooks)
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

        def flying(process: Any) -> None:
            if not any(process._functions is functions for functions in ours):
                return  # another engine's
            self.starts_invocation(process)
            if not hasattr(self.cache, "root"):
                return
            for request in self.invocation_requests(process):
                live = self._live.get(request)
                for record in () if live is None else live.decoder._allocated_cach_recs.values():
                    if record is not None:
                        self.emit_unprotected(request, record.last_cached_node)

        def ended(state: Any, process: Any) -> None:
            # Its arguments were not given back, as after an error.
            for key, calls in list(self._pending_invocations.items()):
                if any(owner is process for owner, _ in calls):
                    for _, finished in self._pending_invocations.pop(key, ()):
                        self.finish(finished)

        hooks.around_task(LlmInvocationProcess, "run", before=flying, after=ended)
        self._hook_landing(hooks)
        self._hook_choice(hooks)

    def _hook_operation(self, hooks: Hooks, name: str, operation: str | None) -> None:
        def request_of(*args: Any, **named: Any) -> str | None:
            return CURRENT_REQUEST.get()

        def set_aside(*args: Any, **named: Any) -> set[int]:
            return set(indices(getattr(self.cache, "_duplicated_pages", ())))

        def published(before: set[int], *rest: Any, **named: Any) -> None:
            added = set(indices(getattr(self.cache, "_duplicated_pages", ()))) - before
            if added:
                self.emit("duplicate", pages=sorted(added))

        def asked(pages: list[int], *rest: Any, **named: Any) -> None:
            if pages:
                missing = set(pages) - set(indices(list(self.cache._allocated_pages)))
                if missing:
                    self.emit("unlisted", pages=sorted(missing))

        if name in ("get_allocated_pages", "free_allocated_pages"):
            hooks.around(self.cache, name, operation, request_of=request_of, before=asked)
        elif operation == "publish":
            hooks.around(
                self.cache,
                name,
                operation,
                request_of=request_of,
                before=set_aside,
                after=published,
            )
        else:
            hooks.around(self.cache, name, operation, request_of=request_of)

    def invocation_requests(self, process: Any) -> list[str]:
        requests = process._responder._exec_requests
        return [requests[task.instance_id].rid for task in process._llm_task._task_inputs]

    def returned_invocation(self, finished: FinishedInvocation) -> None:
        # When the device is done, the arrays are given back for the next call.
        call = (CURRENT_INVOCATION.get(), finished)
        self._pending_invocations.setdefault(id(finished.arguments[0]), []).append(call)

    def _hook_landing(self, hooks: Hooks) -> None:
        def wrap(release: Any) -> Any:
            def finished(allocation: Any) -> Any:
                try:
                    for _, landed in self._pending_invocations.pop(id(allocation._device), ()):
                        self.finish(landed)
                except Exception as error:
                    hooks.observer.fault(error)
                return release(allocation)

            return finished

        hooks.wrap(Allocation, "release", wrap)
        hooks.also(self._pending_invocations.clear)

    def _hook_choice(self, hooks: Hooks) -> None:
        """Tell from which logits each token of an answer was chosen."""
        observer = hooks.observer

        def tell(selector: Any, request: str, logits: Any, index: Any, tokens: Any) -> None:
            try:
                token = _chosen(selector, tokens) if index is None else None
                self.emit_chosen(request, raw(logits), token)
            except Exception as error:
                observer.fault(error)
                self.emit("chosen", request_id=request)  # which one is not known

        def wrap(step: Any) -> Any:
            def stepping(selector: Any, logits: Any, indices: Any) -> Any:
                chosen = step(selector, logits, indices)
                try:
                    request = CURRENT_REQUEST.get()
                    if request in self._live and observer.verifies and len(logits) == 1:
                        tell(selector, request, logits[0], indices[0], chosen[1])
                except Exception as error:
                    observer.fault(error)
                return chosen

            return stepping

        hooks.wrap(TokenSelector, "step", wrap)

    def _hook_requests(self, hooks: Hooks) -> None:
        def started(decoder: Any) -> str | None:
            if decoder._page_cache is not self.cache:
                return None
            request: str = decoder._rid
            CURRENT_REQUEST.set(request)
            self._live[request] = _Live(decoder)
            return request

        def ended(request: str | None, decoder: Any) -> None:
            if request is not None:
                with hooks.grouped(request):
                    self.forget(request)
                    hooks.observer.holds(request, ())

        hooks.around_task(LlmDecoder, "run", before=started, after=ended)

    def _request_of(self, part: Any) -> str | None:
        """Return the request that a decoder or a page manager works for.

        Its task knows, unless it had begun before the hooks were there.
        """
        if (request := CURRENT_REQUEST.get()) is not None:
            return request
        if isinstance(part, LlmDecoder):
            self._live.setdefault(part._rid, _Live(part))
            return str(part._rid)
        for request, live in list(self._live.items()):
            if live.manager is part or (live.manager is None and _serves(part, live.decoder)):
                live.manager = part
                return request
        return None

    def _hook_decoder(self, hooks: Hooks) -> None:
        """After each step that can change what a request holds, tell what it holds."""

        def request_of(part: Any, *args: Any, **named: Any) -> str | None:
            return self._request_of(part)

        def held(state: Any, result: Any, error: Any, part: Any, *a: Any, **k: Any) -> None:
            request = self._request_of(part)
            live = self._live.get(request or "")
            if request is None or live is None:
                return
            pages = live.pages()
            for record in live.decoder._allocated_cach_recs.values():
                if record is not None:
                    self.emit_duplicates(request, indices(record.pages))
            hooks.observer.holds(request, pages)
            if not pages and live.is_over and CURRENT_REQUEST.get() is None:
                self.forget(request)  # nobody else tells its end

        def published(
            state: Any, result: Any, error: Any, decoder: Any, req: Any, *a: Any, **k: Any
        ) -> None:
            live = self._live.get(self._request_of(decoder) or "")
            last = k.get("publish_incomplete_page", bool(a and a[0]))
            # Without a trie nothing is published: what it has stays its own until it is released.
            if last and error is None and live is not None and hasattr(self.cache, "root"):
                live.finish(set(indices(self.cache._duplicated_pages)))
            held(state, result, error, decoder)

        def stepped(state: Any, result: Any, error: Any, manager: Any, *a: Any, **k: Any) -> None:
            live = self._live.get(self._request_of(manager) or "")
            if live is not None and (live.manager is not manager or live.moved()):
                held(state, result, error, manager)

        def made(state: Any, result: Any, error: Any, manager: Any, *a: Any, **k: Any) -> None:
            live = self._live.get(self._request_of(manager) or "")
            if live is not None:
                live.manager = manager
            held(state, result, error, manager)

        def of_decoder(decoder: Any, *args: Any, **named: Any) -> bool:
            return decoder._page_cache is self.cache

        def of_manager(manager: Any, *args: Any, **named: Any) -> bool:
            return manager._page_cache is self.cache

        def of_new_manager(manager: Any, page_cache: Any, *args: Any, **named: Any) -> bool:
            return page_cache is self.cache

        def new_for(manager: Any, *args: Any, **named: Any) -> str | None:
            return CURRENT_REQUEST.get()

        hooks.around(
            LlmDecoder,
            "publish_request",
            applies=of_decoder,
            request_of=request_of,
            after=published,
        )
        for name in ("create_prefill_req", "create_decode_reqs", "free_req_cache"):
            hooks.around(LlmDecoder, name, applies=of_decoder, request_of=request_of, after=held)
        hooks.around(
            PageManager,
            "update_decode_reqs",
            applies=of_manager,
            request_of=request_of,
            after=stepped,
        )
        hooks.around(
            PageManager, "release_pages", applies=of_manager, request_of=request_of, after=held
        )
        hooks.around(
            PageManager, "__init__", applies=of_new_manager, request_of=new_for, after=made
        )


def _chosen(selector: Any, tokens: Any) -> int | None:
    """Return the token that was chosen in a step, None where the selection is not greedy."""
    config = selector._decode_config
    kept = config.temperature in (None, 1.0) and config.logits_normalization.name != "SOFTMAX"
    if config.num_beams > 1 or not kept:
        return None
    # The end of an answer is not among the tokens to go on with.
    return int(tokens[0]) if len(tokens) else int(selector._eos_token_id)


def _serves(manager: Any, decoder: Any) -> bool:
    """Tell whether a page manager has its first pages from this decoder's records."""
    pages = {page for r in decoder._allocated_cach_recs.values() if r for page in indices(r.pages)}
    own = [*manager._shared_pages, *(page for beam in manager._beam_page_ids for page in beam)]
    return bool(own) and own[0] in pages


PROBE = RecordProbe
