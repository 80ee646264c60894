"""About how many bytes a recording keeps for events, invocations and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.shortfin.scores import Scores, Top
from analysis.snapshots.state import CacheState

MOST_BYTES = 1 << 30
"""By default, the most bytes that a recording keeps beside the rows of its events.

500,000 events with the engine's frames take some 0.5 GiB, as many invocations of the counting model
0.3: what is larger, such as scores or the block tables of a large model, ends it earlier.
"""
LONG = 128
"""Lists and texts of events that are longer are counted for their bytes."""
_WORD, _FRAME, _INVOCATION, _NODE, _NUMBERS = 8, 96, 600, 200, 72
"""Bytes of an element, a frame, an invocation, a node of a snapshot, and a token with its
logarithm.
"""
_ARRAYS = ("tokens", "block_tables")
"""Arguments of an invocation that may be large."""


def event_bytes(
    stack: Sequence[Any] | None, extras: dict[str, Any], pages: Sequence[int] | None
) -> int:
    """Return the bytes of an event's frames, and of its lists and texts where they are long."""
    count = _FRAME * len(stack or ())
    for value in (pages, *extras.values()):
        if isinstance(value, str | tuple | list) and len(value) > LONG:
            count += len(value) if isinstance(value, str) else _WORD * len(value)
    return count


def invocation_bytes(arrays: dict[str, Any], scores: Scores | Top | None) -> int:
    """Return about how much an invocation takes: its arrays, and its scores where they are kept."""
    count = _INVOCATION
    for name in _ARRAYS:
        if array := arrays.get(name):
            count += _WORD * len(array[1])
    noted = arrays.get("results") if scores is None else scores
    if isinstance(noted, Scores):  # once more with the tokens that were chosen from them
        return count + len(noted.data) * (2 if "results" in arrays else 1)
    likely = sum(map(len, scores.tokens)) if isinstance(scores, Top) else 0
    return count + _NUMBERS * (likely + len(arrays.get("changed") or ()))


def snapshot_bytes(state: CacheState) -> int:
    """Return about how much a snapshot takes."""
    pages = len(state.free) + sum(map(len, state.holdings.values())) + len(state.allocated or ())
    return _WORD * (pages + sum(len(node.tokens) for node in state.nodes)) + _NODE * len(
        state.nodes
    )
