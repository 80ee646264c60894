"""The tokens of one request whose keys and values must be in the cache."""

from __future__ import annotations

import numpy as np

from analysis.sanitizer.shadow import Hashes, Ints, mix_one, prefix_hashes
from analysis.sanitizer.trace import Result

_ALL = 2**64 - 1


class Sequence:
    """Tokens and progress of one request."""

    def __init__(self, number: int, request_id: str, prompt: tuple[int, ...] | None) -> None:
        self.number, self.request_id = number, request_id
        self.prompt = prompt
        self.answer: list[int | None] = []
        """Tokens that arrived, in order; None where the token is unknown."""
        self.length = 0
        """Executed positions."""
        self.chosen: list[int | None] = []
        """Chosen tokens, in order; None where the selection is not followed."""
        self.follows = True
        """Whether `chosen` is complete from the first token on."""
        self.answers = 0
        """Delivered answers."""
        self.result: Result | None = None
        """Result of the last invocation that can give a token."""
        self.invocations = 0
        """Number of invocations that can give a token."""
        self.unknown = False
        """Whether an invocation is unknown, so that the request is no longer followed."""
        self.prefilled: tuple[int, int, int] | None = None
        """First position, end position and invocation of its last prefill."""
        self.last_invocation = -1
        """The invocation of its last step."""
        self.done: str | None = None
        """How it ended, None while it is under way."""
        self._hashes: Hashes = np.zeros(64, dtype=np.uint64)

    @property
    def hashes(self) -> Hashes:
        """Hash of the prefix that ends at each executed position, [length]."""
        return self._hashes[: self.length]

    @property
    def last(self) -> int:
        """Hash of all executed tokens."""
        return int(self._hashes[self.length - 1]) if self.length else 0

    @property
    def chose_next(self) -> bool:
        """Whether the token for its next decode has been chosen."""
        return self.prompt is None or len(self.answer) > self.length - len(self.prompt)

    @property
    def is_whole(self) -> bool:
        """Whether a token may come next: not before the last chunk of the prompt."""
        return self.prompt is None or self.length >= len(self.prompt)

    def restart(self, tokens: Ints, first_position: int) -> None:
        """Record a prefill of these tokens from a position on."""
        self.length = min(first_position, self.length)
        hashes = prefix_hashes(tokens, self.length, self.last)
        self._reserve(self.length + len(tokens))
        self._hashes[self.length : self.length + len(tokens)] = hashes
        self.length += len(tokens)

    def append(self, token: int) -> None:
        """Record one more token."""
        self._reserve(self.length + 1)
        self._hashes[self.length] = self.last + mix_one(token, self.length) & _ALL
        self.length += 1

    def step(self, phase: str, first: int, invocation_id: int) -> None:
        """Record the invocation of the last step."""
        self.last_invocation = invocation_id
        if phase == "prefill":
            self.prefilled = first, self.length, invocation_id
        self.invocations += self.is_whole

    def hash_before(self, position: int) -> int:
        """Return the hash of the prefix that ends before a position."""
        return int(self._hashes[min(position, self.length) - 1]) if position and self.length else 0

    def _reserve(self, length: int) -> None:
        if length > len(self._hashes):
            larger = np.zeros(2 * length, dtype=np.uint64)
            larger[: self.length] = self._hashes[: self.length]
            self._hashes = larger
