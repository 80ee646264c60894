"""Treatments of what the engine does when there are not enough pages."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from analysis.shortfin.treatment import Treatment, cache_of, nodes_below, part, replace_attribute

if TYPE_CHECKING:
    from analysis.engine import Engine

_AGAIN_S, _PATIENCE_S = 0.005, 30.0


class RequeueUnscheduled(Treatment):
    """A prefill that does not fit waits until it does."""

    name = "requeue-unscheduled"
    hypothesis = "Prefills that find no pages are completed without an answer."
    change = "A prefill that found no pages stays pending and tries again."
    acts_on = "server"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        assert engine.service is not None
        service = engine.service.native
        if hasattr(service, "batcher"):
            _keep_pending(undo, service.batcher)
        else:
            _try_again(engine, undo, cache_of(engine))


def _keep_pending(undo: ExitStack, batcher: Any) -> None:
    decodes, flights = batcher.board_decodes, batcher.board_flights
    left: set[Any] = set()

    def board_decodes(*args: Any) -> Any:
        # It runs after the prefills took off, and before what is left is ended.
        left.update(batcher.pending_prefills)
        batcher.pending_prefills.clear()
        return decodes(*args)

    def board_flights() -> Any:
        try:
            return flights()
        finally:
            batcher.pending_prefills.update(left)
            left.clear()

    replace_attribute(undo, batcher, "board_decodes", board_decodes)
    replace_attribute(undo, batcher, "board_flights", board_flights)


def _try_again(engine: Engine, undo: ExitStack, cache: Any) -> None:
    decoder = part(engine, "decoder.decoder").LlmDecoder
    failure = part(engine, "kvcache.base_attention_cache").CacheAllocationFailure
    run = decoder.run

    async def patient(self: Any, input_ids: Any) -> Any:
        if self._page_cache is not cache:
            return await run(self, input_ids)
        deadline = time.monotonic() + _PATIENCE_S
        create = self.create_prefill_req
        while True:
            try:
                request = create(input_ids)
                break
            except failure:
                if self._cancelled or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)
        self.create_prefill_req = lambda _: request
        return await run(self, input_ids)

    replace_attribute(undo, decoder, "run", patient)


class SurviveAllocationFailure(Treatment):
    """A request that cannot grow fails by itself."""

    name = "survive-allocation-failure"
    hypothesis = "One request's missing page ends the worker, or leaves its pages and others wait."
    change = "A request for which there is no page fails with an error, and gives back what it has."
    acts_on = "server"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        assert engine.service is not None
        if hasattr(engine.service.native, "batcher"):
            self._before_boarding(engine, undo)
        else:
            self._in_the_decoder(engine, undo)

    def _before_boarding(self, engine: Engine, undo: ExitStack) -> None:
        assert engine.service is not None
        adapter, batcher = engine.service, engine.service.native.batcher
        item = part(engine, "generate").GenerateItemProcess
        failure = part(engine, "kvcache.base_attention_cache").CacheAllocationFailure
        decodes, run = batcher.board_decodes, item.run
        failed: set[Any] = set()

        def board_decodes(*args: Any) -> Any:
            for request in list(batcher.pending_decodes):
                try:
                    request.allocation.extend_allocation(
                        request.input_token_ids, extra_token_slots=1
                    )
                except failure:
                    batcher.pending_decodes.remove(request)
                    failed.add(request.rid)
                    request.done.set_success()  # its process wakes up, and finds no result
            return decodes(*args)

        async def told(process: Any) -> Any:
            rid = process.gen_req.rid
            try:
                return await run(process)
            except Exception:
                if process.client.batcher is not batcher or rid not in failed:
                    raise
                failed.discard(rid)
                _answer(adapter.responder_of(rid))

        replace_attribute(undo, batcher, "board_decodes", board_decodes)
        replace_attribute(undo, item, "run", told)

    def _in_the_decoder(self, engine: Engine, undo: ExitStack) -> None:
        decoder = part(engine, "decoder.decoder").LlmDecoder
        failure = part(engine, "kvcache.base_attention_cache").CacheAllocationFailure
        assert engine.service is not None
        adapter, cache, run = engine.service, cache_of(engine), decoder.run

        taken: ContextVar[set[int] | None] = ContextVar("taken", default=None)
        allocate = cache.allocate

        def allocated(tokens: Any, cache_info: Any = None, *args: Any, **named: Any) -> Any:
            answer = allocate(tokens, cache_info, *args, **named)
            if (mine := taken.get()) is not None:
                had = {p.index for p in cache_info.pages} if cache_info is not None else set()
                mine.update(p.index for p in answer.pages if p.index not in had)
            return answer

        async def told(self: Any, input_ids: Any) -> Any:
            if self._page_cache is not cache:
                return await run(self, input_ids)
            created: list[Any] = []
            create = self.create_prefill_req

            def noted(ids: Any) -> Any:
                created.append(create(ids))
                return created[-1]

            self.create_prefill_req = noted
            taken.set(set())  # each request is a task of its own, with a context of its own
            try:
                return await run(self, input_ids)
            except failure:
                lost = taken.get() or set()
                for request in created:
                    # The others of its group would wait for it for ever.
                    self._unified_batcher.reserve_workload(rid=request.orig_instance_id, count=0)
                    record = self._allocated_cach_recs.get(request.instance_id)
                    listed = {page.index for page in record.pages} if record is not None else set()
                    # Without a trie they are freed with the record; with one, those that are
                    # neither published nor set aside are nobody's.
                    lost = (
                        (lost | listed) - _kept(cache) if hasattr(cache, "root") else lost - listed
                    )
                    cache.free_allocated_pages(list(lost))
                    self.free_req_cache(request)
                _answer(adapter.responder_of(self._rid))

        replace_attribute(undo, cache, "allocate", allocated)
        replace_attribute(undo, decoder, "run", told)


def _kept(cache: Any) -> set[int]:
    """Return the pages that the trie has, and those that it frees by itself."""
    with cache._lock:
        published = {node.page.index for node in nodes_below(cache.root)}
        return published | {page.index for page in cache._duplicated_pages}


def _answer(responder: Any) -> None:
    if responder is not None:
        responder.fail("There was no page for its next tokens, and none could be evicted.")
