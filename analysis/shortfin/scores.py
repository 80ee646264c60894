"""Scores of next tokens from an invocation's results; sorted on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.model.elements import decode

_SMALL = 4096
"""Largest vocabulary for which all scores are kept."""


class Top(NamedTuple):
    """The most likely next tokens of each row of an invocation, with log probabilities."""

    tokens: list[list[int]]
    logprobs: list[list[float]]


class Scores(NamedTuple):
    """The model's scores of the next token of each row with a request, as copied bytes."""

    data: bytes
    """Bytes of all rows."""
    number: int
    """Of rows."""
    vocabulary: int
    dtype: str
    """Name of their data type."""

    @property
    def rows(self) -> list[bytes]:
        """The bytes of each row."""
        size = len(self.data) // max(self.number, 1)
        return [self.data[row * size : (row + 1) * size] for row in range(self.number)]

    @property
    def is_small(self) -> bool:
        """Whether all scores are small enough to keep."""
        return self.vocabulary <= _SMALL

    def kept(self, count: int) -> Scores | Top:
        """Return all scores if they are small, else the `count` most likely tokens."""
        if self.is_small or not self.number:
            return self
        tokens, logprobs = _order(self.array(), count)
        return Top(tokens.tolist(), logprobs.tolist())

    def array(self) -> npt.NDArray[np.float64]:
        """Return the scores, [rows, vocabulary]."""
        flat = decode(self.data, self.dtype)
        return np.asarray(flat.reshape(-1, self.vocabulary), dtype=np.float64)


def copy_scores(
    logits: Any, phase: str, rows: int, arrays: Mapping[str, tuple[tuple[int, ...], Any]]
) -> Scores:
    """Copy the scores of the next tokens from a finished invocation.

    `logits` are its results on the device, [batch, tokens, vocabulary], read in place; `arrays` its
    arguments by name, each as shape and flat values. The scores of a row are those of its last
    token.
    """
    batch, width, vocabulary = logits.shape
    places, dtype = [0] * rows, str(logits.dtype)
    if width == 1:  # fast path: a decode, at every token
        whole = bytes(logits.map(read=True))
        return Scores(whole[: len(whole) // batch * rows], rows, vocabulary, dtype)
    if phase == "prefill":
        lengths, starts = arrays["seq_lens"][1], arrays.get("start_positions", ((), [0] * rows))[1]
        places = [min(max(lengths[r] - starts[r], 1), width) - 1 for r in range(rows)]
    copied = []
    for row, place in enumerate(places):
        copied.append(bytes(logits.view(row, place).map(read=True)))
    return Scores(b"".join(copied), rows, vocabulary, dtype)


def likeliest(invocations: Sequence[Scores | Top | None], count: int) -> list[Top | None]:
    """Return the `count` most likely tokens of each row of each invocation; None if unknown.

    The probabilities are normalised over the whole vocabulary, and their logarithms natural.
    """
    scored = [
        invocation
        for invocation in invocations
        if isinstance(invocation, Scores) and invocation.number
    ]
    tokens, logprobs = [], []
    if scored:
        # All together, because one call for each invocation would be slow.
        arrays = _order(np.concatenate([scores.array() for scores in scored]), count)
        tokens, logprobs = (array.tolist() for array in arrays)
    found: list[Top | None] = []
    first = 0
    for invocation in invocations:
        if isinstance(invocation, Scores):
            last = first + invocation.number
            found.append(
                Top(tokens[first:last], logprobs[first:last]) if invocation.number else None
            )
            first = last
        else:
            found.append(invocation)
    return found


def _order(scores: npt.NDArray[np.float64], count: int) -> tuple[npt.NDArray[Any], ...]:
    """Return tokens and log probabilities, [rows, count], most likely first."""
    logs = scores - scores.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    # Stable, so that equally likely tokens are in the order of an argmax.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(logs, order, axis=1)
