"""Changes of a live server of the generation 3.3 and 3.4."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from analysis.core.errors import EngineError
from analysis.shortfin.cache.allocations.server import entry
from analysis.shortfin.service import v3_3
from analysis.shortfin.service.edits import around_decodes, complete, decode_edit, mute
from analysis.shortfin.service.request_list_edits import (
    edit_answers,
    edit_choices,
    edit_results,
    edit_streamed_tokens,
    fail_decodes_without_pages,
)
from analysis.shortfin.treatment import replace_attribute

__all__ = ["around_decodes", "complete", "edit_answers", "edit_choices", "edit_results", "mute"]

_PATIENCE_S = 2.0


def edit_tokens(undo: ExitStack, edit: Callable[[str | None, int], int]) -> None:
    """Call `edit` with every chosen token."""
    edit_streamed_tokens(undo, v3_3.Client, edit)


def encode_answer(service: Any, tokens: list[int]) -> Any:
    """Return the server's response for these tokens."""
    return json.dumps(tokens).encode()


def edit_submissions(
    service: Any, undo: ExitStack, edit: Callable[[Any, Callable[[Any], None]], None]
) -> None:
    """Call `edit` with every submitted decode and the function that submits it."""
    batcher = service.native.decode_batcher
    name = entry(batcher)
    replace_attribute(undo, batcher, name, decode_edit(edit, getattr(batcher, name)))


def survive_allocation_failure(service: Any, undo: ExitStack) -> None:
    """Let only the request fail that gets no page."""
    batcher = service.native.decode_batcher

    def failing() -> None:
        if hasattr(batcher, "complete_workitem"):
            batcher.complete_workitem(1)  # else others wait for it to fill their batch

    fail_decodes_without_pages(service, undo, batcher, "board", "pending", failing)


def separate_fibers(service: Any, undo: ExitStack) -> None:
    """Give the pool a list of its fibers apart from that of the idle ones."""
    pool, params = service.native.fiber_pool, service.native.server_params
    number, deadline = params.workers * params.fibers_per_worker, time.monotonic() + _PATIENCE_S
    while len(fibers := list(pool.fibers)) < number:  # a batcher has one for a moment
        if time.monotonic() > deadline:
            raise EngineError(
                "The engine's fibers are in use, so they cannot be listed. Apply separate-fibers"
                " before the first request."
            )
        time.sleep(0.001)
    replace_attribute(undo, pool, "fibers", fibers)
