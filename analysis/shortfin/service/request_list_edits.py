"""Changes of a live server whose invocations keep their requests in a list (3.1 to 3.6)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import shortfin.array as sfnp
from shortfin_apps.llm.components.generate import GenerateItemProcess
from shortfin_apps.llm.components.kvcache.base_attention_cache import CacheAllocationFailure

from analysis.shortfin.cache.allocations.server import is_task_of
from analysis.shortfin.cache.invocations import CURRENT_INVOCATION
from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.config import PHASES
from analysis.shortfin.service.edits import NO_PAGE, Results, replace_functions
from analysis.shortfin.treatment import replaced


def edit_results(service: Any, undo: ExitStack, edit: Callable[[Results], None]) -> None:
    """Call `edit` with the logits of every invocation before its requests get them."""

    def wrap(phase: str, function: Any) -> Any:
        async def call(*args: Any, fiber: Any) -> Any:
            outcome = await function(*args, fiber=fiber)
            process = CURRENT_INVOCATION.get()
            if process is None:
                return outcome
            ids = [request.rid for request in process.exec_requests]
            results = Results(phase, ids, outcome[0])
            edit(results)
            return (results,)

        return call

    for phase in PHASES:
        functions = getattr(service.native, f"{phase}_functions")
        replace_functions(functions, undo, partial(wrap, phase))


def edit_choices(
    undo: ExitStack, is_due: Callable[[str | None], bool], choose: Callable[[Any], int]
) -> None:
    """Select the due tokens with `choose`, from the scores of the vocabulary."""

    @replaced(undo, sfnp, "argmax")
    def chosen(argmax: Any, logits: Any, *args: Any, **named: Any) -> Any:
        token = argmax(logits, *args, **named)
        if not is_due(CURRENT_REQUEST.get()):
            return token
        return SimpleNamespace(items=[choose(np.array(logits.items).ravel())])


def edit_streamed_tokens(
    undo: ExitStack, client: type, edit: Callable[[str | None, int], int]
) -> None:
    """Call `edit` with every chosen token, when a class of clients gets it."""

    @replaced(undo, client, "stream_results")
    def streaming(stream: Any, self: Any, process: Any) -> None:
        tokens = process.result_token_ids
        tokens[-1] = edit(process.gen_req.rid, tokens[-1])
        stream(self, process)


def edit_answers(undo: ExitStack, edit: Callable[[str, list[int]], list[int]]) -> None:
    """Call `edit` with the tokens of every complete answer."""

    @replaced(undo, GenerateItemProcess, "run")
    async def running(run: Any, process: Any) -> None:
        await run(process)
        process.result_token_ids = edit(process.gen_req.rid, process.result_token_ids)


def fail_decodes_without_pages(
    service: Any,
    undo: ExitStack,
    batcher: Any,
    board: str,
    pending: str,
    failing: Callable[[], None] = lambda: None,
) -> None:
    """Let only the request fail that gets no page for its next token.

    `board` is the batcher's method that makes batches of its set `pending`; `failing` is called
    for each request that fails.
    """
    failed: set[Any] = set()

    @replaced(undo, batcher, board)
    def boarding(make: Any, *args: Any) -> Any:
        requests = getattr(batcher, pending)
        for request in list(requests):
            try:
                request.allocation.extend_allocation(request.input_token_ids, extra_token_slots=1)
            except CacheAllocationFailure:
                requests.remove(request)
                failed.add(request.rid)
                request.done.set_success()  # its process wakes up and finds no result
        return make(*args)

    @replaced(undo, GenerateItemProcess, "run")
    async def running(run: Any, process: Any) -> Any:
        rid = process.gen_req.rid
        try:
            return await run(process)
        except Exception:
            if not is_task_of(service.native, process) or rid not in failed:
                raise
            failed.discard(rid)
            failing()
            if (responder := service.responder_of(rid)) is not None:
                responder.fail(NO_PAGE)
