"""Observes a cache in which requests hold pages with allocation objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shortfin_apps.llm.components.generate import GenerateItemProcess
from shortfin_apps.llm.components.kvcache.base_attention_cache import (
    BasePagedAttentionCacheAllocation,
)
from shortfin_apps.llm.components.kvcache.trie_attention_cache import (
    TriePagedAttentionCacheAllocation,
)

from analysis.shortfin.cache.allocations.choices import hook_choices
from analysis.shortfin.cache.allocations.server import (
    InferenceRequest,
    Invocation,
    batchers,
    entry,
    is_task_of,
    request_id_of,
)
from analysis.shortfin.cache.allocations.treatments import owner_of
from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.invocations import CURRENT_INVOCATION, FinishedInvocation
from analysis.shortfin.cache.probe import BaseProbe, objects_of
from analysis.shortfin.hooks import Hooks

_ALLOCATIONS = (BasePagedAttentionCacheAllocation, TriePagedAttentionCacheAllocation)


@dataclass(slots=True)
class _Noted:
    """An allocation, its request, and its number of pages at the last event."""

    allocation: Any
    request: str
    count: int = -1


class AllocationProbe(BaseProbe):
    """Tracks the request of each allocation and each list of tokens."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Keyed by id(); the objects are kept, so that no id is reused.
        self._allocations: dict[int, _Noted] = {}
        self._prompts: dict[int, tuple[Any, str]] = {}
        self.read_logits: dict[str, bytes | None] = {}
        """Logits for the next token of each request; None if unknown."""
        self._invocations: dict[int, list[FinishedInvocation]] = {}
        """Unfinished invocations of each process, which may call the model more than once."""

    def holdings(self) -> dict[str, list[int]]:
        held: dict[str, dict[int, None]] = {}
        for note in list(self._allocations.values()):
            if not note.allocation._is_released:
                pages = dict.fromkeys(indices(note.allocation.pages))
                held.setdefault(note.request, {}).update(pages)
        return {request: list(pages) for request, pages in held.items()}

    def last_node(self, request_id: str) -> Any:
        for note in list(self._allocations.values()):
            if note.request == request_id:
                return getattr(note.allocation, "last_cached_node", None)
        return None

    def stock(self, request_id: str) -> list[int]:
        return []  # an allocation has no unused pages

    def edit_allocation(self, request_id: str, edit: Callable[[Any], Any]) -> None:
        """Replace a request's list of pages by the result of `edit`."""
        for note in list(self._allocations.values()):
            if note.request == request_id and not note.allocation._is_released:
                pages = note.allocation._pages
                note.allocation._pages = type(pages)(edit(pages))

    def find_requests(self) -> None:
        for request in objects_of(InferenceRequest):
            self.note_request(request)
            if request.allocation is not None and owner_of(request.allocation) is self.cache:
                note = _Noted(request.allocation, request.rid)
                self._allocations[id(request.allocation)] = note

    def note_request(self, part: Any) -> None:
        self._prompts[id(part.input_token_ids)] = part.input_token_ids, part.rid

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self.read_logits.pop(request_id, None)
        for key in [k for k, n in list(self._allocations.items()) if n.request == request_id]:
            self._allocations.pop(key, None)
        for key in [k for k, (_, r) in list(self._prompts.items()) if r == request_id]:
            self._prompts.pop(key, None)

    def hook(self, hooks: Hooks) -> None:
        self._hook_submission(hooks)
        self.hook_requests(hooks, GenerateItemProcess, self._begin)
        hook_choices(self, hooks)
        self._hook_acquire(hooks)
        for kind in _ALLOCATIONS:
            self._hook_allocation(hooks, kind)
        if hasattr(self.cache, "root"):
            self.hook_match(hooks, "_match")
            self.hook_evict(hooks, "_evict_pages")

        def copied(state: Any, page: Any, error: Any, source: Any) -> None:
            if page is not None:
                pages = indices([source, page])
                self.emit("copy", pages=pages, value=self.copy_differs(*pages))

        hooks.around(self.pool, "copy_page", "copy", after=copied)

        def started(process: Any) -> None:
            if process.page_tables is not self.pool.page_tables:
                return  # of another engine
            self.starts_invocation(process)
            for request in process.exec_requests:
                allocation = request.allocation
                note = self._allocations.get(id(allocation))
                if note is not None and len(allocation._pages) != note.count >= 0:
                    note.count = len(allocation._pages)
                    self._held(note.request)  # not part of an operation
                if note is not None:
                    node = getattr(allocation, "last_cached_node", None)
                    self.emit_unprotected(note.request, node)

        def ended(state: Any, process: Any) -> None:
            for finished in self._invocations.pop(id(process), ()):
                self.finish(finished)

        hooks.around_task(Invocation, "run", before=started, after=ended)
        hooks.also(self._invocations.clear)

    def _hook_submission(self, hooks: Hooks) -> None:
        def wrap(submit: Any) -> Any:
            def submitted(item: Any) -> None:
                try:
                    if type(item) is InferenceRequest:
                        self.note_request(item)
                except Exception as error:
                    hooks.observer.fault(error)
                submit(item)

            return submitted

        for batcher in batchers(self.native):
            name = entry(batcher)
            hooks.attribute(batcher, name, wrap(getattr(batcher, name)))

    def returned_invocation(self, finished: FinishedInvocation) -> None:
        # The process ends when the logits of all rows are on the host.
        self._invocations.setdefault(id(CURRENT_INVOCATION.get()), []).append(finished)

    def invocation_requests(self, process: Any) -> list[str]:
        return [request.rid for request in process.exec_requests]

    def _begin(self, process: Any) -> str | None:
        return request_id_of(process) if is_task_of(self.native, process) else None

    def _hook_acquire(self, hooks: Hooks) -> None:
        def request_of(tokens: Sequence[int], *rest: Any, **named: Any) -> str | None:
            _, request = self._prompts.get(id(tokens), (None, None))
            return request

        def acquired(state: Any, allocation: Any, error: Any, tokens: Any, **named: Any) -> None:
            request = request_of(tokens)
            if allocation is not None and request is not None:
                note = _Noted(allocation, request, len(allocation._pages))
                self._allocations[id(allocation)] = note
                self._held(request)

        hooks.around(
            self.cache, "acquire_pages_for_tokens", "acquire", request_of=request_of, after=acquired
        )

    def _hook_allocation(self, hooks: Hooks, kind: type) -> None:
        notes = self._allocations

        def mine(allocation: Any, *rest: Any, **named: Any) -> bool:
            return id(allocation) in notes or owner_of(allocation) is self.cache

        stride = self.cache.tokens_per_page

        def grows(allocation: Any, tokens: Any, *, extra_token_slots: int = 0) -> bool:
            # Called for every token; it is an operation only if a new page is needed.
            room = len(allocation._pages) * stride
            return len(tokens) + extra_token_slots > room and mine(allocation)

        def request_of(allocation: Any, *rest: Any, **named: Any) -> str | None:
            note = notes.get(id(allocation))
            return None if note is None else note.request

        def done(state: Any, result: Any, error: Any, allocation: Any, *_: Any, **__: Any) -> None:
            note = notes.get(id(allocation))
            released, count = allocation._is_released, len(allocation._pages)
            if note is None or (count == note.count and not released):
                return
            note.count = count
            if released:
                notes.pop(id(allocation), None)
            self._held(note.request)

        for name, operation in (
            ("extend_allocation", "extend"),
            ("publish_pages_for_tokens", "publish"),
            ("release_pages", "release"),
        ):
            plain = kind is BasePagedAttentionCacheAllocation
            if plain and operation == "publish":
                continue  # not an operation; called for every token
            ours = grows if plain and operation == "extend" else mine
            hooks.around(kind, name, operation, applies=ours, request_of=request_of, after=done)

    def _held(self, request: str) -> None:
        """Report the pages that a request holds."""
        assert self.observer is not None
        pages: dict[int, None] = {}
        for note in list(self._allocations.values()):
            if note.request == request and not note.allocation._is_released:
                own = indices(note.allocation.pages)
                self.emit_duplicates(request, own)
                pages.update(dict.fromkeys(own))
        self.observer.holds(request, pages)


PROBE = AllocationProbe
