"""Digests of a page table: one for each slot, layer, keys or values, and head."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from analysis.core.errors import EngineError
from analysis.model.elements import nans_in_words
from analysis.recording.writes import Ints, Mask

if TYPE_CHECKING:
    from analysis.shortfin.cache.probe import BaseProbe

Digests = npt.NDArray[np.uint64]
UNKNOWN_TOKEN = -1
_KINDS, _FORMER = ("K", "V"), 256
_WEIGHTS = np.array([(2 * i + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1 | 1 for i in range(64)],
                    dtype=np.uint64)  # fmt: skip


@dataclass
class Pending:
    """A page that had changed when it was read while invocations were pending."""

    page: int
    slots: list[int]
    held: Digests
    """Its digests as read, [layers, 2, stride, heads]."""
    at: Ints
    """Clock of the state that each slot was compared with, [stride]."""
    invocations: set[int]
    moment: str
    since: int
    seen: int
    """The last invocation that began before the read."""
    holders: list[str]
    """Requests that held the page at that time."""
    request_id: str | None


@dataclass
class Copy:
    """The source of a copied page."""

    source: int
    done_after: int
    """The invocation after which the device has certainly made the copy."""
    invocations: set[int]
    """Invocations that may have been writing to the source at that time."""


class Sink(Protocol):
    """The methods of a recorder that `Checksums` uses."""

    under_way: dict[int, tuple[Any, ...]]
    checksums: Any

    def event(self, kind: str, **fields: Any) -> None:
        """Record an event."""

    def held_by(self, request_id: str) -> frozenset[int]:
        """Return the pages that a request holds."""

    def holders_of(self, page: int) -> list[str]:
        """Return the requests that hold a page."""

    def of_bytes(self, look: Callable[..., None], *args: Any) -> None:
        """Call a function; an error in it ends the byte checks."""


class PageDigests:
    """The digests of every page at its last read.

    The page table is mapped once and read in place. Raises EngineError if it cannot be read.
    """

    def __init__(self, probe: BaseProbe) -> None:
        self._open(probe)
        shape = (self._count, self._stride)
        layers, kinds, stride, shard = self._tables[0].shape[1:5]
        heads = shard * len(self._tables)
        self._digest = np.zeros((self._count, layers, kinds, stride, heads), dtype=np.uint64)
        self._known = np.zeros(shape, dtype=bool)
        self._at = np.zeros(shape, dtype=np.int64)
        """Time at which a digest's state was first read, on the object's own clock."""
        self._token = np.full(shape, UNKNOWN_TOKEN, dtype=np.int64)
        """The last written token."""
        self._since = np.full(self._count, -1, dtype=np.int64)
        """The last invocation that began before the page was last found correct."""
        self._clock, self._last_begun = 1, -1
        self._former: deque[tuple[int, int, Digests]] = deque(maxlen=_FORMER)
        """Old digests of changed slots; other slots have them if pages were swapped."""
        self._air: dict[int, int] = {}
        """Invocations under way, with the clock at their start (-1 if unknown)."""
        self._copied: dict[int, Copy] = {}
        """Copies by target page."""

    def _uncertain_copies(self, invocation: int, written: frozenset[int]) -> None:
        """Reset the expected digests of copies, if an invocation was writing to their source."""
        for target, copy in self._copied.items():
            if invocation in copy.invocations:
                first = copy.source * self._stride
                slots = [s for s in range(self._stride) if first + s in written]
                self._known[target, slots] = False

    def _is_settling(self, page: int) -> bool:
        """Return whether a page is a copy that the device may not have completed."""
        if page not in self._copied:
            return False
        after = self._copied[page].done_after
        return after > self._last_begun or any(number <= after for number in self._air)

    def _learn(self, pages: Sequence[int]) -> None:
        """Accept the current content of pages as correct, except for known digests."""
        self._clock += 1
        unknown = ~self._known[pages]
        held = self._of_pages(pages)
        self._digest[pages] = np.where(unknown[:, None, None, :, None], held, self._digest[pages])
        self._at[pages] = np.where(unknown, self._clock, self._at[pages])
        self._since[pages] = np.maximum(self._since[pages], self._last_begun)
        self._known[pages] = True

    def _open(self, probe: BaseProbe) -> None:
        """Map the page tables."""
        self._stride = int(probe.cache.tokens_per_page)
        self._count = len(probe.pool.attn_page_entries)
        layers = int(probe.native.model_params.transformer_block_count)
        heads = int(probe.native.model_params.paged_kv_cache.attention_head_count_kv)
        tables = probe.pool.page_tables
        shape = (self._count, layers, 2, self._stride, heads // len(tables), -1)
        try:
            # Keep the mappings, because the arrays use them.
            self._maps = [table.map(read=True) for table in tables]
            flat = [np.asarray(memoryview(mapped)).reshape(-1) for mapped in self._maps]
            self._tables = [array.view(np.uint8).reshape(shape).view(np.uint64) for array in flat]
        except Exception as error:
            raise EngineError(f"the page table of this device cannot be mapped: {error}") from error
        width = self._tables[0].shape[-1]
        self._weights = np.resize(_WEIGHTS, width)
        # A NaN that is overwritten by itself looks unchanged.
        self._nan = np.array(
            [(np.full(width, word) * self._weights).sum() for word in nans_in_words(probe.dtype)],
            dtype=np.uint64,
        )

    def _of_pages(self, pages: Any) -> Digests:
        """Return the digests of pages, [pages, layers, 2, stride, heads]."""
        return self._digested([table[pages] for table in self._tables])

    def _of_slots(self, pages: Ints, slots: Ints) -> Digests:
        """Return the digests of slots, [slots, layers, 2, heads]."""
        return self._digested([table[pages, :, :, slots] for table in self._tables])

    def _digested(self, parts: Sequence[Digests]) -> Digests:
        # Weights are odd, so that every single changed bit is detected. They are the same for every
        # block, so that a moved block is recognised. The digest of zeros is 0.
        sums = [np.einsum("...i,i->...", part, self._weights) for part in parts]
        return sums[0] if len(sums) == 1 else np.concatenate(sums, axis=-1)

    def _origin(
        self, page: int, slots: Sequence[int], unlike: Mask, held: Digests
    ) -> dict[str, Any]:
        """Return the new content of changed slots, as columns: zeros, another slot, or neither."""
        if not held[unlike].any():
            return {"zeros": True}
        for place, slot in enumerate(slots):
            changed, now = unlike[:, :, place], held[:, :, place]
            if not now[changed].any():
                continue
            layer, kind, head = (axis[0] for axis in np.nonzero(changed))
            pages, there = np.nonzero(
                self._digest[:, layer, kind, :, head] == now[layer, kind, head]
            )
            known = [
                (q, s, self._digest[q][:, :, s])
                for q, s in zip(pages.tolist(), there.tolist(), strict=True)
            ]
            for q, s, digest in [*known, *self._former]:
                if (q, s) != (page, slot) and (digest == now)[changed].all():
                    return {"zeros": False, "from_page": q, "from_slot": s}
        return {"zeros": False}

    def _lost(self, held: Digests, same: Mask, checked: Mask, before: Ints, tokens: Ints) -> Mask:
        """Return which blocks are unchanged, but should have been changed by a write.

        The first layer's values depend only on the token, and its keys on the token and position.
        If the token may be the same, unchanged blocks there are no evidence. Neither is NaN.
        """
        kept = same & aligned(checked) & ~np.isin(held, self._nan)
        first = kept[:, 0]
        keys, values = first[:, 0], first[:, 1]
        whole_keys, whole_values = keys.all(axis=1), values.all(axis=1)
        plain = (whole_keys | ~keys.any(axis=1)) & (whole_values | ~values.any(axis=1))
        plain &= whole_values | ~whole_keys
        plain &= (before == tokens) | (before == UNKNOWN_TOKEN)
        plain &= ~kept[:, 1:].any(axis=(1, 2, 3))
        return kept & ~aligned(plain)


def aligned(mask: Mask) -> Mask:
    """Return a mask of slots in the shape of their blocks, [slots, 1, 1, 1]."""
    return mask[:, None, None, None]


def blocks_of(marked: Mask) -> list[dict[str, Any]] | None:
    """Return layer, K or V, and head of each marked block; None if all are marked."""
    if marked.all():
        return None
    found: Iterable[Any] = zip(*(axis.tolist() for axis in np.nonzero(marked)), strict=True)
    return [{"layer": layer, "kind": _KINDS[kind], "head": head} for layer, kind, head in found]
