"""Changes of a live server of the generation 3.5 and 3.6."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from shortfin_apps.llm.components import batcher as batching
from shortfin_apps.llm.components.generate import GenerateItemProcess
from shortfin_apps.llm.components.kvcache.base_attention_cache import CacheAllocationFailure
from shortfin_apps.llm.components.token_selection_strategy.sampler import Sampler

from analysis.shortfin.cache.allocations.choices import beam_class
from analysis.shortfin.cache.allocations.server import request_id_of
from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.config import PHASES
from analysis.shortfin.service.edits import (
    NO_PAGE,
    Results,
    around_decodes,
    complete,
    edit_beam_answers,
    mute,
)
from analysis.shortfin.service.request_list_edits import edit_choices as edit_first_choices
from analysis.shortfin.service.v3_3_edits import edit_submissions, encode_answer
from analysis.shortfin.treatment import replaced

__all__ = [
    "around_decodes", "complete", "edit_submissions", "encode_answer", "mute",
]  # fmt: skip


def edit_results(service: Any, undo: ExitStack, edit: Callable[[Results], None]) -> None:
    """Call `edit` with the logits of every invocation before its requests get them."""
    tables = service.cache.page_pool.page_tables

    def wrap(phase: str, kind: type) -> None:
        @replaced(undo, kind, "get_results")
        async def giving(give: Any, process: Any, logits: Any, *rest: Any) -> None:
            if process.page_tables is tables:
                ids = [request.rid for request in process.exec_requests]
                logits = Results(phase, ids, logits)
                edit(logits)
            await give(process, logits, *rest)

    for phase in PHASES:
        wrap(phase, getattr(batching, f"{phase.capitalize()}ExecutorProcess"))


def edit_choices(
    undo: ExitStack, is_due: Callable[[str | None], bool], choose: Callable[[Any], int]
) -> None:
    """Select the due tokens with `choose`, from the scores of the vocabulary."""
    edit_first_choices(undo, is_due, choose)

    @replaced(undo, Sampler, "select_greedy")
    def chosen(select: Any, sampler: Any, logits: Any) -> int:
        if not is_due(CURRENT_REQUEST.get()):
            return int(select(sampler, logits))
        return choose(np.array(logits).ravel())


def edit_tokens(undo: ExitStack, edit: Callable[[str | None, int], int]) -> None:
    """Call `edit` with every token that a decode chose."""

    @replaced(undo, beam_class(), "update_exec_req")
    def updating(update: Any, beam: Any) -> None:
        update(beam)
        request = beam.exec_req
        beam.last_token = edit(request.rid, int(request.input_token_ids[-1]))
        request.input_token_ids[-1] = beam.last_token


def edit_answers(undo: ExitStack, edit: Callable[[str, list[int]], list[int]]) -> None:
    """Call `edit` with the tokens of every complete answer of one beam."""
    edit_beam_answers(undo, GenerateItemProcess, request_id_of, edit)


def requeue_unscheduled(service: Any, undo: ExitStack) -> None:
    """Keep prefills that found no pages pending."""
    batcher = service.native.prefill_batcher

    @replaced(undo, batcher, "board_request")
    def boarded(board: Any, cache: Any, request: Any) -> Any:
        result = board(cache, request)
        if result is None:
            batcher.pending.add(request)
        return result


def ignore_unreserved(service: Any, undo: ExitStack) -> None:
    """Let requests without a place leave the groups of the decodes without an error."""
    scheduler = service.native.decode_batcher.scheduler

    @replaced(undo, scheduler, "_remove")
    def removing(remove: Any, *, rid: str) -> None:
        if rid in scheduler._workgroup_placement:
            remove(rid=rid)


class _NoResultsError(Exception):
    """A request's step has no results."""

    def __init__(self, request: Any) -> None:
        super().__init__("A step of the request has no results.")
        self.request = request


def survive_allocation_failure(service: Any, undo: ExitStack) -> None:
    """Let only the request fail that gets no page, or whose invocation failed."""
    native = service.native
    batcher = native.decode_batcher
    failed: set[Any] = set()

    @replaced(undo, batcher, "board_request")
    def boarded(board: Any, cache: Any, request: Any) -> Any:
        try:
            return board(cache, request)
        except CacheAllocationFailure:
            failed.add(request.rid)
            request.done.set_success()  # its task wakes up and finds no results
            return None

    @replaced(undo, beam_class(), "sample_logits")
    def sampled(sample: Any, beam: Any, *args: Any) -> Any:
        request = beam.exec_req
        # The release chooses token 0 from them, and continues without pages.
        if request.result_logits is None and request._cache is native.page_cache:
            raise _NoResultsError(request)
        return sample(beam, *args)

    @replaced(undo, GenerateItemProcess, "run")
    async def running(run: Any, task: Any) -> Any:
        try:
            return await run(task)
        except _NoResultsError as error:
            rid = request_id_of(task)
            _leave_group(batcher, error.request)
            reason = NO_PAGE if rid in failed else f"{error} Its invocation failed."
            failed.discard(rid)
            if (responder := service.responder_of(rid)) is not None:
                responder.fail(reason)


def _leave_group(batcher: Any, request: Any) -> None:
    """Remove a request from its group, the rest of which would wait for it forever."""
    if hasattr(batcher, "reserve_workload"):
        batcher.reserve_workload(rid=request.orig_instance_id, count=0)
    else:
        batcher.complete_workitem(rid=request.orig_instance_id, count=1)
