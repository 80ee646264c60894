"""Changes of a live server of the generation 3.1 and 3.2."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from shortfin_apps.llm.components.service import BatcherProcess

from analysis.shortfin.service import v3_1
from analysis.shortfin.service.edits import around_decodes, complete, decode_edit, mute
from analysis.shortfin.service.request_list_edits import (
    edit_answers,
    edit_choices,
    edit_results,
    edit_streamed_tokens,
    fail_decodes_without_pages,
)
from analysis.shortfin.treatment import replace_attribute, replaced

__all__ = ["around_decodes", "complete", "edit_answers", "edit_choices", "edit_results", "mute"]


def edit_tokens(undo: ExitStack, edit: Callable[[str | None, int], int]) -> None:
    """Call `edit` with every chosen token."""
    edit_streamed_tokens(undo, v3_1.Client, edit)


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
    fail_decodes_without_pages(service, undo, batcher, "board_decodes", "pending_decodes")


def shorten_strobes(undo: ExitStack, seconds: float) -> None:
    """Set the batcher's waiting time for a batch to fill."""
    for name in ("STROBE_SHORT_DELAY", "STROBE_LONG_DELAY"):
        replace_attribute(undo, BatcherProcess, name, seconds)
