"""Changes of a live server of the generation 3.9."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import numpy as np
from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, TokenSelector
from shortfin_apps.llm.components.generate import GenerateItemProcess
from shortfin_apps.llm.components.kvcache.base_attention_cache import CacheAllocationFailure

from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.cache.trie import read_trie
from analysis.shortfin.config import PHASES
from analysis.shortfin.service.edits import (
    NO_PAGE,
    Results,
    decode_edit,
    edit_beam_answers,
)
from analysis.shortfin.service.edits import share_one_worker as share_one_worker
from analysis.shortfin.treatment import replace_attribute, replaced

_AGAIN_S, _PATIENCE_S = 0.005, 30.0


def edit_results(service: Any, undo: ExitStack, edit: Callable[[Results], None]) -> None:
    """Call `edit` with the logits of every invocation before its requests get them."""

    def wrap(phase: str, responder: Any) -> Any:
        succeed = responder.set_success

        def succeeding(task: Any, logits: Any, indices: Any) -> None:
            requests = responder._get_requests_from_task(task)
            results = Results(phase, [request.rid for request in requests], logits)
            edit(results)
            succeed(task, results, indices)

        return succeeding

    lanes = service.native.unified_batcher._impl.batching_engine
    for phase in PHASES:
        responder = getattr(lanes, f"{phase}_lane")._llm_task_responder
        replace_attribute(undo, responder, "set_success", wrap(phase, responder))


def edit_choices(
    undo: ExitStack, is_due: Callable[[str | None], bool], choose: Callable[[Any], int]
) -> None:
    """Select the due tokens with `choose`, from the scores of the vocabulary."""

    def select(scores: Any, config: Any) -> Any:
        tokens = np.array([choose(scores.flatten())])
        return tokens, scores.flatten()[tokens]

    @replaced(undo, TokenSelector, "step")
    def stepping(step: Any, selector: Any, logits: Any, indices: Any) -> Any:
        if not is_due(CURRENT_REQUEST.get()):
            return step(selector, logits, indices)
        own = selector._select_function
        selector._select_function = select
        try:
            return step(selector, logits, indices)
        finally:
            selector._select_function = own


def edit_tokens(undo: ExitStack, edit: Callable[[str | None, int], int]) -> None:
    """Call `edit` with every chosen token."""

    @replaced(undo, TokenSelector, "step")
    def stepping(step: Any, selector: Any, logits: Any, indices: Any) -> Any:
        beams, tokens = step(selector, logits, indices)
        if tokens:
            before = int(tokens[0])
            after = edit(CURRENT_REQUEST.get(), before)
            if after != before:
                tokens = [after]
        return beams, tokens


def edit_answers(undo: ExitStack, edit: Callable[[str, list[int]], list[int]]) -> None:
    """Call `edit` with the tokens of every complete answer of one beam."""
    edit_beam_answers(undo, GenerateItemProcess, lambda task: task.rid, edit)


def encode_answer(service: Any, tokens: list[int]) -> Any:
    """Return the server's response for these tokens."""
    return [tokens]


def edit_submissions(
    service: Any, undo: ExitStack, edit: Callable[[Any, Callable[[Any], None]], None]
) -> None:
    """Call `edit` with every submitted decode and the function that submits it."""
    # Below the facade, where the decode's token is recorded.
    batcher = service.native.unified_batcher._impl
    replace_attribute(undo, batcher, "submit", decode_edit(edit, batcher.submit))


def requeue_unscheduled(service: Any, undo: ExitStack) -> None:
    """Retry prefills that found no free pages."""
    cache = service.native.page_cache

    @replaced(undo, LlmDecoder, "run")
    async def running(run: Any, self: Any, input_ids: Any) -> Any:
        if self._page_cache is not cache:
            return await run(self, input_ids)
        deadline = time.monotonic() + _PATIENCE_S
        create = self.create_prefill_req
        while True:
            try:
                request = create(input_ids)
                break
            except CacheAllocationFailure:
                if self._cancelled or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)
        self.create_prefill_req = lambda _: request
        return await run(self, input_ids)


def survive_allocation_failure(service: Any, undo: ExitStack) -> None:
    """Let only the request fail that gets no page."""
    cache = service.native.page_cache
    taken: ContextVar[set[int] | None] = ContextVar("taken", default=None)

    @replaced(undo, cache, "allocate")
    def allocated(
        allocate: Any, tokens: Any, cache_info: Any = None, *args: Any, **named: Any
    ) -> Any:
        answer = allocate(tokens, cache_info, *args, **named)
        if (own := taken.get()) is not None:
            had = {p.index for p in cache_info.pages} if cache_info is not None else set()
            own.update(p.index for p in answer.pages if p.index not in had)
        return answer

    @replaced(undo, LlmDecoder, "run")
    async def running(run: Any, self: Any, input_ids: Any) -> Any:
        if self._page_cache is not cache:
            return await run(self, input_ids)
        created: list[Any] = []
        create = self.create_prefill_req

        def noted(ids: Any) -> Any:
            created.append(create(ids))
            return created[-1]

        self.create_prefill_req = noted
        taken.set(set())  # each request has its own task and context
        try:
            return await run(self, input_ids)
        except CacheAllocationFailure:
            _give_back(self, cache, created, taken.get() or set())
            if (responder := service.responder_of(self._rid)) is not None:
                responder.fail(NO_PAGE)


def _give_back(decoder: Any, cache: Any, created: list[Any], taken: set[int]) -> None:
    """Free the pages that a request allocated before it failed."""
    for request in created:
        # The other requests of its group would wait for it forever.
        decoder._unified_batcher.reserve_workload(rid=request.orig_instance_id, count=0)
        record = decoder._allocated_cach_recs.get(request.instance_id)
        listed = {page.index for page in record.pages} if record is not None else set()
        # Without a trie they are freed with the record. With a trie, unpublished pages that are
        # no duplicates belong to no request.
        taken = (taken | listed) - _kept(cache) if hasattr(cache, "root") else taken - listed
        cache.free_allocated_pages(list(taken))
        decoder.free_req_cache(request)


def _kept(cache: Any) -> set[int]:
    """Return the cached pages, and the duplicates that the cache will free."""
    with cache._lock:
        published = {node.page.index for node in read_trie(cache.root, (), id).live[1:]}
        return published | {page.index for page in cache._duplicated_pages}
