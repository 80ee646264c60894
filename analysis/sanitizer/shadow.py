"""A shadow of the page table: which prefix was last written to each slot, and when.

The key and value of a position depend on all tokens up to it, so the shadow stores a hash of that
prefix for each slot. It uses only the arguments and results of the compiled model's calls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

NOTHING, UNKNOWN, PADDING = np.uint64(0), np.uint64(1), np.uint64(2)
"""Special contents: never written; written before the recording began; padding."""
NO_WRITER = -1
_ALL = 2**64 - 1


class Shadow:
    """Content of the slots of a page table; every array has the shape [pages x stride].

    A slot's number is page * stride + offset.
    """

    def __init__(self, page_count: int, stride: int, unknown_pages: list[int]) -> None:
        """Set some pages to unknown content, and all others to never written."""
        slots = page_count * stride
        self.page_count, self.stride = page_count, stride
        self.content: Hashes = np.full(slots, NOTHING, dtype=np.uint64)
        self.writer = np.full(slots, NO_WRITER, dtype=np.int32)
        """Number of the sequence that wrote the slot last."""
        self.position = np.full(slots, -1, dtype=np.int32)
        """Position in that sequence."""
        self.invocation = np.full(slots, -1, dtype=np.int32)
        """Invocation that wrote it."""
        self.tainted = np.zeros(slots, dtype=bool)
        """Whether it was computed from wrong data."""
        self.freed_after = np.full(page_count, -1, dtype=np.int64)
        """The last invocation that began before the page was last freed."""
        for page in unknown_pages:
            self.forget(page)

    def copy(self, source: int, target: int) -> None:
        """Copy the slots of one page to another, if both exist."""
        if not (0 <= source < self.page_count and 0 <= target < self.page_count):
            return
        a, b = (slice(p * self.stride, (p + 1) * self.stride) for p in (source, target))
        for array in (self.content, self.writer, self.position, self.invocation, self.tainted):
            array[b] = array[a]

    def forget(self, page: int) -> None:
        """Set the content of a page to unknown, if it exists."""
        if 0 <= page < self.page_count:
            slots = slice(page * self.stride, (page + 1) * self.stride)
            self.content[slots], self.writer[slots], self.position[slots] = UNKNOWN, NO_WRITER, -1
            self.tainted[slots] = False

    def allocate(self, page: int) -> None:
        """Set the unknown slots of an allocated page to never written, since the owner is new."""
        if 0 <= page < self.page_count:
            content = self.content[page * self.stride : (page + 1) * self.stride]
            content[content == UNKNOWN] = NOTHING


def mix(tokens: Ints, first_position: int) -> Hashes:
    """Return what each token adds to the hash of a prefix, in the shape of `tokens` (1-D).

    A prefix's hash is the sum of its tokens, each mixed with its position (finaliser of
    splitmix64), modulo 2^64. Different sequences collide with probability 2^-64.
    """
    positions = np.arange(first_position, first_position + len(tokens), dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += (positions + np.uint64(1)) * np.uint64(0xD1342543DE82EF95)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def mix_one(token: int, position: int) -> int:
    """Return the same for one token, without the overhead of an array."""
    x = token * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1342543DE82EF95 & _ALL
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _ALL
    return x ^ x >> 31


def prefix_hashes(tokens: Ints, first_position: int = 0, base: int = 0) -> Hashes:
    """Return the hash of every prefix; `base` is the hash of the tokens before the first."""
    sums: Hashes = np.cumsum(mix(tokens, first_position), dtype=np.uint64)
    if base:
        with np.errstate(over="ignore"):
            sums += np.uint64(base)
    return sums
