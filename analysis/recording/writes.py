"""The slots that an invocation writes, from the arguments passed to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PADDING_PAGE = 0
"""The page used for padding of rows and block tables."""


class Written:
    """The slots that all rows of an invocation wrote, except those of padding page 0."""

    rows: Ints
    pages: Ints
    slots: Ints
    tokens: Ints
    real: Mask
    """Whether only tokens of requests are written to the slot."""

    def __init__(
        self, phase: str, real: int, arrays: dict[str, Any], stride: int, page_count: int
    ) -> None:
        self._real, self._stride, self._page_count = real, stride, page_count
        (rows, width), tokens = arrays["tokens"]
        (_, blocks), self._tables = arrays["block_tables"]
        self._blocks = int(blocks)
        starts = arrays.get("start_positions")
        first = [0] * rows if starts is None else list(starts[1])
        self._ends: list[int] = [start + 1 for start in first[:real]]
        if phase == "decode":
            self._decode(rows, first, tokens)
        else:
            lengths = list(arrays["seq_lens"][1])
            self._ends = lengths[:real]
            self._prefill(rows, width, first, lengths, tokens)

    def _decode(self, rows: int, first: list[int], tokens: Sequence[int]) -> None:
        """Collect the slot of each decode row. Hot path."""
        blocks, stride, found = self._blocks, self._stride, []
        for row in range(rows):
            block = first[row] // stride
            if not 0 <= block < blocks:
                continue
            page = self._tables[row * blocks + block]
            if 0 <= page < self._page_count and page != PADDING_PAGE:
                found.append((row, page, first[row] % stride, tokens[row]))
        table = np.array(found, dtype=np.int64).reshape(-1, 4)
        self.rows, self.pages, self.slots, self.tokens = table.T
        self._mark(self.rows < self._real)

    def _prefill(
        self, rows: int, width: int, first: list[int], lengths: list[int], tokens: Sequence[int]
    ) -> None:
        starts = np.array(first, dtype=np.int64)
        tables = np.asarray(self._tables, dtype=np.int64).reshape(rows, self._blocks)
        positions = starts[:, None] + np.arange(width)
        blocks = positions // self._stride
        inside = (blocks >= 0) & (blocks < self._blocks)
        pages = tables[np.arange(rows)[:, None], blocks.clip(0, self._blocks - 1)]
        inside &= (pages >= 0) & (pages < self._page_count) & (pages != PADDING_PAGE)
        count = (np.array(lengths, dtype=np.int64) - starts).clip(0, width)
        carries = (np.arange(width) < count[:, None]) & (np.arange(rows) < self._real)[:, None]
        self.rows, self.pages = np.nonzero(inside)[0], pages[inside]
        self.slots = positions[inside] % self._stride
        self.tokens = np.asarray(tokens, dtype=np.int64).reshape(rows, width)[inside]
        self._mark(carries[inside])

    def _mark(self, carries: Mask) -> None:
        self.real = carries
        if carries.any() and not carries.all():
            flat = self.pages * self._stride + self.slots
            self.real = carries & ~np.isin(flat, flat[~carries])

    @property
    def flat(self) -> frozenset[int]:
        """Slot numbers."""
        return frozenset((self.pages * self._stride + self.slots).tolist())

    def only(self, pages: Mask) -> None:
        """Keep only the writes to marked pages, [pages]."""
        kept = pages[self.pages]
        self.rows, self.pages, self.slots = self.rows[kept], self.pages[kept], self.slots[kept]
        self.tokens, self.real = self.tokens[kept], self.real[kept]

    def among(self, pages: Sequence[int]) -> list[int]:
        """Return the ones of `pages` that requests' rows attend to or write."""
        blocks, rows = self._blocks, range(self._real)
        used = (self._tables[row * blocks : row * blocks + self._used(row)] for row in rows)
        return sorted(set(pages).intersection(set().union(*used)))

    def pages_used(self) -> int:
        """Return the number of pages that requests' rows attend to or write, row by row."""
        return sum(map(self._used, range(self._real)))

    def page_used(self, number: int) -> int:
        """Return one of these pages; page 0 if it does not exist."""
        for row in range(self._real):
            if number < (used := self._used(row)):
                page = int(self._tables[row * self._blocks + number])
                return page if 0 <= page < self._page_count else PADDING_PAGE
            number -= used
        return PADDING_PAGE

    def _used(self, row: int) -> int:
        return int(min(max(0, -(-self._ends[row] // self._stride)), self._blocks))
