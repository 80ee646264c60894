"""Faults in the bytes of pages: additional writes, and lost writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.shortfin.treatment import LiveEngine, replaced
from analysis.treatments.faults.base import Injection, InvocationFault, Site, fault
from analysis.treatments.faults.cache import copy_short

Bits = npt.NDArray[np.uint16]
_LAYER, _HEAD, _SLOT = 1, 1, 3
_FLIP = 0x0100


@contextmanager
def bits_of(probe: Any, page: int) -> Iterator[Bits]:
    """Yield a page's bits, to be changed in place, [layers, 2, stride, heads, head dim].

    Works on one device with mappable memory.
    """
    [table] = probe.pool.page_tables
    params = probe.native.model_params
    heads = int(params.paged_kv_cache.attention_head_count_kv)
    layers, stride = int(params.transformer_block_count), int(probe.cache.tokens_per_page)
    with table.view(page).map(read=True, write=True) as mapped:
        flat = np.asarray(memoryview(mapped)).reshape(-1).view(np.uint16)
        yield flat.reshape(layers, 2, stride, heads, -1)
        del flat


def _settled_page(site: Site, row: int) -> int | None:
    """Return the page that a row writes to, if its first slots are already written.

    Earlier pages may be shared and rewritten by another request's prefill.
    """
    position = int(site.arrays["start_positions"][row])
    page = int(site.tables[row, position // site.stride])
    return page if page != 0 and position % site.stride > _SLOT + 1 else None


# -- pages of requests -------------------------------------------------------------------------


class PageFault(InvocationFault):
    """A fault in the page that a row writes to, before a decode: `function(bits)`."""

    def inject(self, site: Site) -> Injection | None:
        page = _settled_page(site, site.row)
        if page is None:
            return None
        with bits_of(site.probe, page) as bits:
            before = bits.copy()
            type(self).function(bits)
            return None if np.array_equal(before, bits) else site.injection(page)


class TwoPagesFault(InvocationFault):
    """A fault between the pages that two rows write to: `function(bits, others)`."""

    def inject(self, site: Site) -> Injection | None:
        other, page = site.other, _settled_page(site, site.row)
        source = None if other is None else _settled_page(site, other)
        if page is None or source is None or page == source:
            return None
        with bits_of(site.probe, page) as bits, bits_of(site.probe, source) as others:
            # The same tokens have the same bytes: nothing would change.
            if np.array_equal(bits[_LAYER, :, _SLOT], others[_LAYER, :, _SLOT]):
                return None
            type(self).function(bits, others)
        return site.injection(page, other)


_corrupted = partial(fault, rule="kv-corruption")


@_corrupted("flipped-bit", cause="changed", kind=PageFault)
def flipped_bit(bits: Bits) -> None:
    """Flips one bit in a page of a pending request, once."""
    bits[_LAYER, 1, _SLOT, _HEAD, 5] ^= _FLIP


@_corrupted("flipped-bit-cached", cause="changed", needs=["trie"])
def flipped_bit_cached(site: Site) -> Injection | None:
    """Flips one bit in a cached page that no request holds, once."""
    state = site.probe.read()
    held = {page for pages in state.holdings.values() for page in pages}
    for node in state.nodes:
        if node.page and node.page not in held and node.ref_count <= 0:
            with bits_of(site.probe, node.page) as bits:
                bits[_LAYER, 1, 0, _HEAD, 5] ^= _FLIP
            return Injection(page=node.page)
    return None


@_corrupted("flipped-bit-free", cause="free-page")
def flipped_bit_free(site: Site) -> Injection | None:
    """Flips one bit in a free page, once."""
    page = site.free[len(site.free) // 2].index
    if page == 0:
        return None
    with bits_of(site.probe, page) as bits:
        bits[_LAYER, 0, _SLOT, _HEAD, 5] ^= _FLIP
    return Injection(page=page)


@_corrupted("head-zeroed", cause="changed", kind=PageFault)
def head_zeroed(bits: Bits) -> None:
    """Zeroes the keys of one attention head in a page of a request, once."""
    bits[:, 0, :, _HEAD] = 0


@_corrupted("values-zeroed", cause="changed", kind=PageFault)
def values_zeroed(bits: Bits) -> None:
    """Zeroes all values in a page of a request, once."""
    bits[:, 1] = 0


@_corrupted("slots-shifted", cause="other-slot", kind=PageFault)
def slots_shifted(bits: Bits) -> None:
    """Shifts the slots of a page of a request by one, once."""
    bits[:, :, 1:] = bits[:, :, :-1].copy()


@_corrupted("foreign-layer", cause="other-slot", kind=TwoPagesFault)
def foreign_layer(bits: Bits, others: Bits) -> None:
    """Overwrites one layer of a request's page with that of another request's page, once."""
    bits[_LAYER] = others[_LAYER]


@_corrupted("pages-swapped", cause="other-slot", kind=TwoPagesFault)
def pages_swapped(bits: Bits, others: Bits) -> None:
    """Swaps the bytes of the last pages of two requests, once."""
    bits[:], others[:] = others.copy(), bits.copy()


# -- writes of the model -----------------------------------------------------------------------


class WriteFault(InvocationFault):
    """A fault in the slot that a decode writes for a row: `function(slot, before)`.

    The function restores a part of the slot, [layers, 2, heads, head dim], after the decode:
    before the observer is called, or after it if `afterwards` is set.
    """

    afterwards = False

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._restore: Callable[[], None] | None = None

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Try every invocation, and wait until the damaged one has finished."""
        probe = engine.probe
        if probe is not None:

            @replaced(undo, probe, "finish")
            def finished(finish: Any, invocation: Any, error: BaseException | None = None) -> None:
                due = self._restore if self._is_damaged(invocation) else None
                if due is not None and not self.afterwards:
                    due()
                finish(invocation, error)
                if due is not None:
                    self._restore = None
                    if self.afterwards:
                        due()

        super().apply(engine, undo)

    def _is_damaged(self, finished: Any) -> bool:
        if self._restore is None or self.injected is None or finished.invocation is None:
            return False
        return bool(finished.invocation[0] == self.injected.invocation_id)

    def inject(self, site: Site) -> Injection | None:
        page, slot = int(site.table[site.start // site.stride]), site.start % site.stride
        if page == 0:
            return None
        with bits_of(site.probe, page) as bits:
            before = bits[:, :, slot].copy()

        def restore() -> None:
            with bits_of(site.probe, page) as bits:
                type(self).function(bits[:, :, slot], before)

        self._restore = restore
        return site.injection(page)


_lost = partial(fault, rule="lost-write", kind=WriteFault)


@_lost("write-lost", cause="whole-slot")
def write_lost(slot: Bits, before: Bits) -> None:
    """Discards the write of one decode to its slot."""
    slot[:] = before


@_lost("values-lost", cause="part-of-slot")
def values_lost(slot: Bits, before: Bits) -> None:
    """Discards the values that one decode writes to its slot."""
    slot[:, 1] = before[:, 1]


@_lost("head-lost", cause="part-of-slot")
def head_lost(slot: Bits, before: Bits) -> None:
    """Discards the keys of one head that one decode writes to its slot."""
    slot[:, 0, _HEAD] = before[:, 0, _HEAD]


@_lost("layer-lost", cause="part-of-slot")
def layer_lost(slot: Bits, before: Bits) -> None:
    """Discards the last layer that one decode writes to its slot."""
    slot[-1] = before[-1]


@_corrupted("write-undone", cause="changed", kind=WriteFault, afterwards=True)
def write_undone(slot: Bits, before: Bits) -> None:
    """Restores the old content of one decode's slot after the decode has finished."""
    slot[:] = before


# No control: a sweep does not compare the bytes of copied pages.
@_corrupted("copied-without-layer", cause="copied-page", control=False)
def copied_without_layer(site: Site) -> Injection | None:
    """Copies a page without its last layer and frees the copy, once."""
    page = _settled_page(site, site.row)
    return None if page is None else copy_short(site, page, 4)
