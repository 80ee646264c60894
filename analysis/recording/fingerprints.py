"""Fingerprints of the pages of a request's rows: a checksum of what each row attends to."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.recording.digests import PageDigests
from analysis.recording.recorder import Recorder

if TYPE_CHECKING:
    from analysis.shortfin.cache.probe import BaseProbe


@dataclass(frozen=True)
class RowPages:
    """The pages of one row after its invocation."""

    request_id: str
    phase: str
    length: int
    """Tokens of the row's own sequence, with those that it wrote."""
    pages: tuple[int, ...]
    """Its block table within this length."""
    checksums: tuple[int, ...]
    """CRC-32 of the keys and values of each page, within this length."""


class Fingerprints(PageDigests):
    """Takes the fingerprints of every row when its invocation ends, for an observed engine.

    It takes the place of byte checks in the recorder. Raises EngineError if the page table cannot
    be read.
    """

    def __init__(self, probe: BaseProbe) -> None:
        super().__init__(probe)
        self.lock = threading.RLock()
        self.rows: list[RowPages] = []
        """In the order of the ends of invocations."""

    def begins(self, invocation: int) -> None:
        """Do nothing: the start of an invocation."""

    def seen(self, kind: str, pages: Sequence[int], request_id: str | None) -> None:
        """Do nothing: an event of pages."""

    def ends(
        self,
        invocation: int,
        phase: str,
        request_ids: Sequence[str],
        arrays: dict[str, Any],
        error: BaseException | None,
    ) -> None:
        """Read the pages of an invocation's rows."""
        (_, blocks), tables = arrays["block_tables"]
        own = "start_positions" if phase == "decode" else "seq_lens"
        with self.lock:
            for row, request_id in enumerate(request_ids):
                # A decode's own length: its seq_len may be wrong.
                length = int(arrays[own][1][row]) + (phase == "decode")
                count = min(-(-length // self._stride), blocks)
                pages = [int(page) for page in tables[row * blocks : row * blocks + count]]
                sums = self._sums(pages, length)
                self.rows.append(RowPages(request_id, phase, length, tuple(pages), sums))

    def _sums(self, pages: Sequence[int], length: int) -> tuple[int, ...]:
        slots = [min(self._stride, length - n * self._stride) for n in range(len(pages))]
        return tuple(
            zlib.crc32(np.ascontiguousarray(self._of_pages([page])[0][:, :, :count]).tobytes())
            for page, count in zip(pages, slots, strict=True)
        )

    def close(self) -> None:
        """Release the page tables."""
        self._tables, self._maps = [], []


def take(recorder: Recorder) -> Fingerprints:
    """Take fingerprints for a recorder without byte checks. Raises EngineError."""
    assert recorder.engine.probe is not None
    found = Fingerprints(recorder.engine.probe)
    recorder.checksums = found  # type: ignore[assignment]
    return found
