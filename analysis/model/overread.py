"""How much a model notices of lengths that are too long: the share of tokens that change.

shortfin 3.1.0 gives a decode at position p the length 2p + 1 instead of p + 1, so a row attends to
the slots behind its own up to the end of its last page, whatever request wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from analysis.model.reference import ReferenceDecoder, ReferenceSequence


@dataclass(frozen=True, slots=True)
class Overread:
    """Tokens that change when foreign slots are read, over answers of some length."""

    changed: int
    tokens: int
    """Decoded tokens; not the first of an answer, which comes from the prefill."""
    answers_changed: int
    answers: int

    @property
    def share(self) -> float:
        """Share of tokens that change."""
        return self.changed / self.tokens

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of tokens ({self.changed} of {self.tokens}), in"
            f" {self.answers_changed} of {self.answers} answers"
        )

    @classmethod
    def sum(cls, parts: Iterable[Overread]) -> Overread:
        """Return several together."""
        counts = [astuple(part) for part in parts]
        return cls(*(sum(column) for column in zip(*counts, strict=True)))


def overread(
    decoder: ReferenceDecoder, own: Sequence[int], other: Sequence[int], n: int
) -> Overread:
    """Decode `n` tokens after `own`, each also with a length of 2p + 1 over the slots of `other`.

    Every token is compared with the right one after the same right tokens and cache. `other` is
    prefilled into a cache of its own. It must fill the last page that is read, which `n` more
    tokens than those of `own` and a page do.
    """
    capacity = _whole_pages(len(own) + n, decoder)
    foreign = decoder.start(other[:capacity], capacity=capacity).read_pages()
    sequence = decoder.start(own, capacity=capacity)
    changed = 0
    for _ in range(n - 1):
        token = sequence.next_token
        misread = _misread(sequence, foreign, token)
        sequence.step(token)
        changed += misread != sequence.next_token
    return Overread(changed, n - 1, int(changed > 0), 1)


def _misread(sequence: ReferenceSequence, foreign: np.ndarray, token: int) -> int:
    """Return the choice of a decode that reads too far; the sequence is then as before."""
    pages, position = sequence.read_pages(), len(sequence.tokens)
    is_foreign = np.arange(pages.shape[0] * pages.shape[3]) >= position
    by_slot = is_foreign.reshape(len(pages), 1, 1, -1, 1, 1)
    mixed = np.where(by_slot, foreign, pages)
    right = sequence.logits
    sequence.write_pages(mixed)
    logits = sequence.step(token, seq_len=2 * position + 1)
    sequence.tokens.pop()
    sequence.write_pages(pages)
    sequence.logits = right
    return int(np.argmax(logits))


def _whole_pages(tokens: int, decoder: ReferenceDecoder) -> int:
    stride = decoder.model.config.block_seq_stride
    return -(-tokens // stride) * stride
