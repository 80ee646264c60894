"""Changes of a live server of the generation 3.7."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from shortfin_apps.llm.components.batching.modes import default as batching
from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, PageManager
from shortfin_apps.llm.components.kvcache.base_attention_cache import CacheAllocationFailure

from analysis.shortfin.config import PHASES
from analysis.shortfin.service.edits import NO_PAGE, Results, mute, share_one_worker
from analysis.shortfin.service.v3_9_edits import (
    edit_answers,
    edit_choices,
    edit_submissions,
    edit_tokens,
    encode_answer,
    requeue_unscheduled,
)
from analysis.shortfin.treatment import replaced

__all__ = [
    "edit_answers", "edit_choices", "edit_results", "edit_submissions", "edit_tokens",
    "encode_answer", "mute", "requeue_unscheduled", "share_one_worker",
    "survive_allocation_failure",
]  # fmt: skip


def edit_results(service: Any, undo: ExitStack, edit: Callable[[Results], None]) -> None:
    """Call `edit` with the logits of every invocation before its requests get them."""
    cache = service.native.page_cache

    def wrap(phase: str, kind: type) -> None:
        @replaced(undo, kind, "set_success")
        def succeeding(succeed: Any, responder: Any, logits: Any, indices: Any) -> None:
            requests = responder._exec_requests
            if all(request._cache is cache for request in requests):
                logits = Results(phase, [request.rid for request in requests], logits)
                edit(logits)
            succeed(responder, logits, indices)

    for phase in PHASES:
        wrap(phase, getattr(batching, f"{phase.capitalize()}TaskResponder"))


def survive_allocation_failure(service: Any, undo: ExitStack) -> None:
    """Let only the request fail that gets no page."""
    cache = service.native.page_cache
    own: ContextVar[list[Any] | None] = ContextVar("own", default=None)
    """The request's objects that hold pages: each has a method that frees them."""

    @replaced(undo, PageManager, "allocate")
    def allocated(allocate: Any, manager: Any, count: int) -> Any:
        held = own.get()
        if manager._page_pool is not cache.page_pool or held is None:
            return allocate(manager, count)
        if not any(manager.release_pages == free for free in held):
            held.append(manager.release_pages)
        try:
            return allocate(manager, count)
        except TypeError as error:
            # The release extends its lists by None if the pool has too few pages.
            raise CacheAllocationFailure(NO_PAGE) from error

    @replaced(undo, LlmDecoder, "run")
    async def running(run: Any, decoder: Any, input_ids: Any) -> Any:
        if decoder._page_cache is not cache:
            return await run(decoder, input_ids)
        create, made, held = decoder.create_prefill_req, list[Any](), list[Any]()

        def noted(ids: Any) -> Any:
            made.append(create(ids))
            return made[-1]

        decoder.create_prefill_req = noted
        own.set(held)  # each request has its own task and context
        try:
            return await run(decoder, input_ids)
        except CacheAllocationFailure:
            for request in made:
                # The other requests of its group would wait for it forever.
                decoder._unified_batcher.reserve_workload(rid=request.orig_instance_id, count=0)
                request.free_cache_pages()
            for free in held:
                free()
            if (responder := service.responder_of(decoder._rid)) is not None:
                responder.fail(NO_PAGE)
