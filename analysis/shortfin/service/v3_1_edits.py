"""Changes of a live server of the generation 3.1 and 3.2."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import shortfin.array as sfnp
from shortfin_apps.llm.components.generate import GenerateItemProcess
from shortfin_apps.llm.components.kvcache.base_attention_cache import CacheAllocationFailure
from shortfin_apps.llm.components.service import BatcherProcess

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION
from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.service import v3_1
from analysis.shortfin.service.edits import (
    NO_PAGE,
    PHASES,
    Results,
    decode_edit,
    replace_functions,
)
from analysis.shortfin.service.edits import around_decodes as around_decodes
from analysis.shortfin.service.edits import complete as complete
from analysis.shortfin.service.edits import mute as mute
from analysis.shortfin.treatment import replace_attribute, replaced


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


def edit_tokens(undo: ExitStack, edit: Callable[[str | None, int], int]) -> None:
    """Call `edit` with every chosen token."""

    @replaced(undo, v3_1.Client, "stream_results")
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


def encode_answer(service: Any, tokens: list[int]) -> Any:
    """Return the server's response for these tokens."""
    if v3_1.ANSWERS_IDS:
        return json.dumps(tokens).encode()
    (text,) = service.native.tokenizer.decode([tokens])
    return b"data: " + text.encode() + b"\n\n"


def edit_submissions(
    service: Any, undo: ExitStack, edit: Callable[[Any, Callable[[Any], None]], None]
) -> None:
    """Call `edit` with every submitted decode and the function that submits it."""
    batcher = service.native.batcher
    replace_attribute(undo, batcher, "submit", decode_edit(edit, batcher.submit))


def requeue_unscheduled(service: Any, undo: ExitStack) -> None:
    """Keep prefills that found no pages pending."""
    batcher = service.native.batcher
    left: set[Any] = set()

    @replaced(undo, batcher, "board_decodes")
    def board_decodes(decodes: Any, *args: Any) -> Any:
        # Runs after the prefills were launched, and before the remaining ones are ended.
        left.update(batcher.pending_prefills)
        batcher.pending_prefills.clear()
        return decodes(*args)

    @replaced(undo, batcher, "board_flights")
    def board_flights(prefills: Any) -> Any:
        try:
            return prefills()
        finally:
            batcher.pending_prefills.update(left)
            left.clear()


def survive_allocation_failure(service: Any, undo: ExitStack) -> None:
    """Let only the request fail that gets no page."""
    batcher = service.native.batcher
    failed: set[Any] = set()

    @replaced(undo, batcher, "board_decodes")
    def board_decodes(decodes: Any, *args: Any) -> Any:
        for request in list(batcher.pending_decodes):
            try:
                request.allocation.extend_allocation(request.input_token_ids, extra_token_slots=1)
            except CacheAllocationFailure:
                batcher.pending_decodes.remove(request)
                failed.add(request.rid)
                request.done.set_success()  # its process wakes up and finds no result
        return decodes(*args)

    @replaced(undo, GenerateItemProcess, "run")
    async def running(run: Any, process: Any) -> Any:
        rid = process.gen_req.rid
        try:
            return await run(process)
        except Exception:
            if process.client.batcher is not batcher or rid not in failed:
                raise
            failed.discard(rid)
            if (responder := service.responder_of(rid)) is not None:
                responder.fail(NO_PAGE)


def shorten_strobes(undo: ExitStack, seconds: float) -> None:
    """Set the batcher's waiting time for a batch to fill."""
    for name in ("STROBE_SHORT_DELAY", "STROBE_LONG_DELAY"):
        replace_attribute(undo, BatcherProcess, name, seconds)
