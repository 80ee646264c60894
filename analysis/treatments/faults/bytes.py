"""Faults in the bytes of pages: beside the model's writes, or instead of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.shortfin.treatment import replace_attribute
from analysis.treatments.faults.base import Injection, InvocationFault, another
from analysis.treatments.faults.cache import CopiedShort
from analysis.treatments.invocations import PendingInvocation

if TYPE_CHECKING:
    from analysis.engine import Engine

Bits = npt.NDArray[np.uint16]
_LAYER, _HEAD, _SLOT = 1, 1, 3
_FLIP = 0x0100
_CHANGED = ("kv-corruption", "changed")
_MOVED = ("kv-corruption", "other-slot")
_MISSING = ("lost-write", "part-of-slot")


@contextmanager
def bits_of(probe: Any, page: int) -> Iterator[Bits]:
    """Give a page's bits to be changed in place, [layers, 2, stride, heads, head dim].

    For an engine on one device, whose memory can be mapped.
    """
    [table] = probe.pool.page_tables
    params = probe.native.model_params
    heads = int(params.paged_kv_cache.attention_head_count_kv)
    layers, stride = int(params.transformer_block_count), int(probe.cache.tokens_per_page)
    with table.view(page).map(read=True, write=True) as mapped:
        flat = np.asarray(memoryview(mapped)).reshape(-1).view(np.uint16)
        yield flat.reshape(layers, 2, stride, heads, -1)
        del flat


def _settled_page(invocation: PendingInvocation, row: int, probe: Any) -> int | None:
    """Return the page that a row writes to if its first slots were written already.

    Those before it may be shared, and be written again meanwhile by another request's prefill.
    """
    stride = int(probe.cache.tokens_per_page)
    position = int(invocation.arrays["start_positions"][row])
    page = int(invocation.arrays["block_tables"][row, position // stride])
    return page if page != 0 and position % stride > _SLOT + 1 else None


class _PageFault(InvocationFault):
    """A fault in the page that a row writes to, before a decode."""

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        page = _settled_page(invocation, row, probe)
        if page is None:
            return None
        injected = Injection(invocation.request_ids[row], None, page)
        with bits_of(probe, page) as bits:
            before = bits.copy()
            self.damage(bits)
            return None if np.array_equal(before, bits) else injected

    def damage(self, bits: Bits) -> None:
        """Change the page's bits in place."""


class FlippedBit(_PageFault):
    """One bit of a page changes that a request holds."""

    name = "fault:flipped-bit"
    change = "One bit of a page of a request under way is flipped, once."
    rule, cause = _CHANGED

    def damage(self, bits: Bits) -> None:
        bits[_LAYER, 1, _SLOT, _HEAD, 5] ^= _FLIP


class FlippedBitCached(InvocationFault):
    """One bit of a page changes that only the trie holds."""

    name = "fault:flipped-bit-cached"
    change = "One bit of a page of the trie that no request holds is flipped, once."
    needs = frozenset({"trie"})
    rule, cause = _CHANGED

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        state = probe.read()
        held = {page for pages in state.holdings.values() for page in pages}
        for node in state.nodes:
            if node.page and node.page not in held and node.ref_count <= 0:
                with bits_of(probe, node.page) as bits:
                    bits[_LAYER, 1, 0, _HEAD, 5] ^= _FLIP
                return Injection(None, None, node.page)
        return None


class FlippedBitFree(InvocationFault):
    """One bit of a free page changes."""

    name = "fault:flipped-bit-free"
    change = "One bit of a free page is flipped, once."
    rule, cause = ("kv-corruption", "free-page")

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        page = probe.pool.available_pages[len(probe.pool.available_pages) // 2].index
        if page == 0:
            return None
        with bits_of(probe, page) as bits:
            bits[_LAYER, 0, _SLOT, _HEAD, 5] ^= _FLIP
        return Injection(None, None, page)


class HeadZeroed(_PageFault):
    """A head is lost after it was written."""

    name = "fault:head-zeroed"
    change = "The keys of one attention head become zeros in a page of a request, once."
    rule, cause = _CHANGED

    def damage(self, bits: Bits) -> None:
        bits[:, 0, :, _HEAD] = 0


class ValuesZeroed(_PageFault):
    """The half of a page is lost."""

    name = "fault:values-zeroed"
    change = "All values of a page of a request become zeros, once."
    rule, cause = _CHANGED

    def damage(self, bits: Bits) -> None:
        bits[:, 1] = 0


class SlotsShifted(_PageFault):
    """A page's slots move on by one."""

    name = "fault:slots-shifted"
    change = "The slots of a page of a request move on by one, once."
    rule, cause = _MOVED

    def damage(self, bits: Bits) -> None:
        bits[:, :, 1:] = bits[:, :, :-1].copy()


class _TwoPagesFault(InvocationFault):
    """A fault between the pages that two rows write to."""

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        other = another(invocation, row)
        page = _settled_page(invocation, row, probe)
        source = None if other is None else _settled_page(invocation, other, probe)
        if other is None or page is None or source is None or page == source:
            return None
        with bits_of(probe, page) as bits, bits_of(probe, source) as others:
            # Of the same tokens the bytes are the same, and nothing would happen.
            if np.array_equal(bits[_LAYER, :, _SLOT], others[_LAYER, :, _SLOT]):
                return None
            self.damage(bits, others)
        return Injection(invocation.request_ids[row], invocation.request_ids[other], page)

    @abstractmethod
    def damage(self, bits: Bits, others: Bits) -> None:
        """Change the bits of one page or of both in place."""


class ForeignLayer(_TwoPagesFault):
    """A layer of another request's page stands in a page."""

    name = "fault:foreign-layer"
    change = "One layer of a page of a request becomes that of another request's, once."
    rule, cause = _MOVED

    def damage(self, bits: Bits, others: Bits) -> None:
        bits[_LAYER] = others[_LAYER]


class PagesSwapped(_TwoPagesFault):
    """Two pages change places, and the block tables do not."""

    name = "fault:pages-swapped"
    change = "The bytes of the last pages of two requests are exchanged, once."
    rule, cause = _MOVED

    def damage(self, bits: Bits, others: Bits) -> None:
        bits[:], others[:] = others.copy(), bits.copy()


class _WriteFault(InvocationFault):
    """A fault in what a decode writes for a row, done when it has landed."""

    told_first = False
    """Whether the landing is told before."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._landed: Callable[[], None] | None = None
        self._invocation: Any = None

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Look at every invocation for one that it can inject, and wait for its landing."""
        probe = engine.probe
        if probe is not None:
            land = probe.finish

            def landed(landing: Any, error: BaseException | None = None) -> None:
                due = self._landed if self._is_mine(landing) else None
                if due is not None and not self.told_first:
                    due()
                land(landing, error)
                if due is not None:
                    self._landed = None
                    if self.told_first:
                        due()

            replace_attribute(undo, probe, "finish", landed)
        super().apply(engine, undo)

    def _is_mine(self, landing: Any) -> bool:
        if self._landed is None or self.injected is None or landing.invocation is None:
            return False
        return bool(landing.invocation[0] == self.injected.invocation_id)

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        stride = int(probe.cache.tokens_per_page)
        position = int(invocation.arrays["start_positions"][row])
        page = int(invocation.arrays["block_tables"][row, position // stride])
        if page == 0:
            return None
        with bits_of(probe, page) as bits:
            before = bits[:, :, position % stride].copy()

        def landed() -> None:
            with bits_of(probe, page) as bits:
                self.lose(bits[:, :, position % stride], before)

        self._landed = landed
        return Injection(invocation.request_ids[row], None, page)

    @abstractmethod
    def lose(self, slot: Bits, before: Bits) -> None:
        """Put back what a slot held in part, [layers, 2, heads, head dim]."""


class WriteLost(_WriteFault):
    """A write does not arrive."""

    name = "fault:write-lost"
    change = "The slot of one decode keeps what it held before."
    rule, cause = ("lost-write", "whole-slot")

    def lose(self, slot: Bits, before: Bits) -> None:
        slot[:] = before


class ValuesLost(_WriteFault):
    """The values of a token do not arrive."""

    name = "fault:values-lost"
    change = "The values in the slot of one decode stay what they were before."
    rule, cause = _MISSING

    def lose(self, slot: Bits, before: Bits) -> None:
        slot[:, 1] = before[:, 1]


class HeadLost(_WriteFault):
    """One head of a token does not arrive."""

    name = "fault:head-lost"
    change = "The keys of one head in the slot of one decode stay what they were before."
    rule, cause = _MISSING

    def lose(self, slot: Bits, before: Bits) -> None:
        slot[:, 0, _HEAD] = before[:, 0, _HEAD]


class LayerLost(_WriteFault):
    """One layer of a token does not arrive."""

    name = "fault:layer-lost"
    change = "The last layer in the slot of one decode stays what it was before."
    rule, cause = _MISSING

    def lose(self, slot: Bits, before: Bits) -> None:
        slot[-1] = before[-1]


class WriteUndone(_WriteFault):
    """A write arrives and is taken back."""

    name = "fault:write-undone"
    change = "The slot of one decode goes back to what it held before, after the landing was told."
    rule, cause = _CHANGED
    told_first = True

    def lose(self, slot: Bits, before: Bits) -> None:
        slot[:] = before


class CopiedWithoutLayer(CopiedShort):
    """A copied page lacks its last layer, of the four that the model has here."""

    name = "fault:copied-without-layer"
    change = "A page is copied without its last layer, once; the copy is freed again."
    rule, cause = ("kv-corruption", "copied-page")
    part = 4

    def source(self, invocation: PendingInvocation, row: int, probe: Any) -> int | None:
        """Return the page to be copied: one that holds something."""
        return _settled_page(invocation, row, probe)


BYTES_FAULTS = (
    FlippedBit, FlippedBitCached, FlippedBitFree, HeadZeroed, ValuesZeroed, SlotsShifted,
    ForeignLayer, PagesSwapped, WriteLost, ValuesLost, HeadLost, LayerLost, WriteUndone,
    CopiedWithoutLayer,
)  # fmt: skip
