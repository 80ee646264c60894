"""Estimates the bytes of recorded events, invocations and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.shortfin.scores import Scores, Top
from analysis.snapshots.state import CacheState

MOST_BYTES = 1 << 30
"""Default limit for the bytes of a recording, in addition to the rows of its events.

500,000 events with frames take about 0.5 GiB, and as many invocations of the counting model 0.3
GiB. Scores or the block tables of a large model reach the limit earlier.
"""
LONG = 128
"""Lists and texts of events above this length are counted by their size."""
_WORD, _FRAME, _INVOCATION, _NODE, _NUMBERS = 8, 96, 600, 200, 72
"""Bytes of an element, a frame, an invocation, a node of a snapshot, and a token with its
logarithm.
"""
_ARRAYS = ("tokens", "block_tables")
"""Arguments of an invocation that can be large."""


def event_bytes(
    stack: Sequence[Any] | None, extras: dict[str, Any], pages: Sequence[int] | None
) -> int:
    """Return the bytes of an event's frames, and of its long lists and texts."""
    count = _FRAME * len(stack or ())
    for value in (pages, *extras.values()):
        if isinstance(value, str | tuple | list) and len(value) > LONG:
            count += len(value) if isinstance(value, str) else _WORD * len(value)
    return count


def invocation_bytes(arrays: dict[str, Any], scores: Scores | Top | None) -> int:
    """Return the approximate bytes of an invocation: its arrays, and its scores if kept."""
    count = _INVOCATION
    for name in _ARRAYS:
        if array := arrays.get(name):
            count += _WORD * len(array[1])
    noted = arrays.get("results") if scores is None else scores
    if isinstance(noted, Scores):  # doubled for the tokens chosen from them
        return count + len(noted.data) * (2 if "results" in arrays else 1)
    likely = sum(map(len, scores.tokens)) if isinstance(scores, Top) else 0
    return count + _NUMBERS * (likely + len(arrays.get("changed") or ()))


def snapshot_bytes(state: CacheState) -> int:
    """Return the approximate bytes of a snapshot."""
    pages = len(state.free) + sum(map(len, state.holdings.values())) + len(state.allocated or ())
    return _WORD * (pages + sum(len(node.tokens) for node in state.nodes)) + _NODE * len(
        state.nodes
    )
