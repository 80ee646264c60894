"""Checksums of the pages' bytes, to find changes without a write and lost writes.

If a page has changed, it is checked only after every invocation that may have written to it has
finished, using the arguments of these invocations.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.recording.digests import (
    UNKNOWN_TOKEN,
    Copy,
    Digests,
    PageDigests,
    Pending,
    Sink,
    aligned,
    blocks_of,
)
from analysis.recording.writes import PADDING_PAGE, Mask, Written

if TYPE_CHECKING:
    from analysis.shortfin.cache.probe import BaseProbe


MODES = ("sampled", "landings", "whole")
FOLLOWED = 32
"""With *sampled*, one page of this number is followed."""
SAMPLED = 4
"""With *landings*, number of pages read at the end of an invocation, drawn from its rows'."""
SEEN = frozenset(["acquire", "free", "pages_dropped", "match", "copy"])
"""Event kinds that are passed to `Checksums.seen`."""
_MOST_PENDING = 1000
_LEARNT = 64
"""Pages read at a time at the beginning, to limit the engine's wait."""
_SEED = 20261125


_watching: dict[int, Checksums] = {}
"""Checksums by the id of the pool."""


@contextmanager
def writing(pool: Any, page: int) -> Iterator[None]:
    """Declare an intended write to a page outside of the model, as by a treatment."""
    watched = _watching.get(id(pool))
    if watched is None:
        yield
        return
    with watched.lock:
        yield
        watched.recorder.of_bytes(watched.rewritten, page)


class Checksums(PageDigests):
    """Digests of all slots of an engine's page table, compared when a page is read again.

    Slots are read when the invocation that writes them finishes, and pages when they are acquired,
    freed, found in the trie or dropped. *sampled* follows only one page in 32, drawn at random.
    *landings* follows all pages, and also reads four pages after every invocation, drawn from those
    of its rows. *whole* reads all pages at the start and end of every invocation. Padding page 0 is
    never checked, because padding rows write to it.

    Nothing is read before `open`. The other methods are called on the engine's threads. Raises
    EngineError if the page table cannot be read.
    """

    def __init__(self, probe: BaseProbe, recorder: Sink, *, mode: str = "sampled") -> None:
        super().__init__(probe)
        self.mode = mode
        self.lock = threading.RLock()
        self.invocations = 0
        """Number of ended invocations."""
        self.pages_read = 0
        """Number of pages that were read and compared."""
        self.slots_written = 0
        """Number of slots read after the invocation that wrote them."""
        self.unchecked = 0
        """Number of page changes not checked because too many were pending."""
        self._offered = 0
        """Number of pages that could have been read at the ends of invocations."""
        self.recorder, self._pool = recorder, probe.pool
        self._random = random.Random(_SEED)
        self._all = list(range(self._count))
        """The followed pages."""
        if mode == "sampled" and self._count > 1:
            pages = self._all[PADDING_PAGE + 1 :]
            self._all = sorted(self._random.sample(pages, -(-len(pages) // FOLLOWED)))
        self._follows = np.zeros(self._count, dtype=bool)
        self._follows[self._all] = True
        self._followed = frozenset(self._all)
        self._pending: list[Pending] = []
        # Invocations that began before the hooks were attached may write unobserved.
        self._unsure = {page for pages in probe.holdings().values() for page in pages}
        self._unsure.add(PADDING_PAGE)

    def open(self) -> None:
        """Attach to the recorder, then read all pages.

        In this order, because a write in between would look like a change without a write.
        """
        with self.lock:
            _watching[id(self._pool)] = self
            self.recorder.checksums = self
            self._air = dict.fromkeys(self.recorder.under_way, -1)
        for first in range(0, len(self._all), _LEARNT):
            with self.lock:
                if self._tables:
                    self._learn(self._all[first : first + _LEARNT])

    def close(self) -> None:
        """Release the page tables."""
        with self.lock:
            _watching.pop(id(self._pool), None)
            self._tables, self._maps = [], []

    # -- what the engine does --------------------------------------------------------------

    def begins(self, invocation: int) -> None:
        """Record the start of an invocation."""
        with self.lock:
            if self.mode == "whole":
                self._look(self._all, "start")
            self._clock += 1
            self._air[invocation] = self._clock
            self._last_begun = max(self._last_begun, invocation)

    def ends(
        self,
        invocation: int,
        phase: str,
        request_ids: Sequence[str],
        arrays: dict[str, Any],
        error: BaseException | None,
    ) -> None:
        """Check the slots that an invocation wrote, and pages that it did not write."""
        with self.lock:
            begun = self._air.pop(invocation, None)
            if not self._tables:
                return
            self.invocations += 1
            self._clock += 1
            idle = begun is not None and error is None and not self._pending and not self._copied
            if idle and self.mode == "sampled" and self._spares(phase, arrays):
                return
            try:
                wrote = Written(phase, len(request_ids), arrays, self._stride, self._count)
            except (KeyError, ValueError, IndexError):  # its arguments could not be read
                wrote = None
            # Without its start, reads during its writes are unknown.
            if wrote is None or begun is None or error is not None:
                self._distrust(request_ids, wrote)
                self._settle(invocation, frozenset())  # no uncertain page is pending any more
                return
            if self._pending or self._copied:
                self._settle(invocation, wrote.flat)
                self._uncertain_copies(invocation, wrote.flat)
            self._arrive(invocation, request_ids, wrote, begun)
            if self._copied:
                self._look([*self._copied], "landing")
            if self.mode == "whole":
                self._look(self._all, "landing")
            elif self.mode == "sampled":
                self._look(wrote.among(self._all), "landing")
            elif offered := wrote.pages_used():
                self._offered += offered
                chosen = self._random.sample(range(offered), min(SAMPLED, offered))
                self._look([*{wrote.page_used(number) for number in chosen}], "landing")

    def seen(self, kind: str, pages: Sequence[int], request_id: str | None) -> None:
        """Check the pages of an event."""
        if self._followed.isdisjoint(pages):
            return
        with self.lock:
            if not self._tables:
                return
            there = [page for page in dict.fromkeys(pages) if page in self._followed]
            if kind == "copy":
                source, target = pages[:2]
                if 0 <= source < self._count and target in there:
                    self._copy(source, target)
                return
            if kind == "acquire":
                again = [page for page in there if page in self._unsure and page != PADDING_PAGE]
                self._unsure.difference_update(again)
                self._known[again] = False  # its content may have been written unobserved
            self._look(there, kind, request_id)

    def rewritten(self, page: int) -> None:
        """Record an intended write to a page outside of the model."""
        with self.lock:
            if not self._tables or page not in self._followed:
                return
            self._clock += 1
            self._digest[page] = self._of_pages([page])[0]
            self._known[page], self._at[page] = True, self._clock
            self._token[page] = UNKNOWN_TOKEN
            self._copied.pop(page, None)

    def read_all(self) -> None:
        """Read every page, so that all changes are reported."""
        with self.lock:
            if self._tables:
                for copy in self._copied.values():
                    copy.done_after = -1
                self._look(self._all, "end")

    @property
    def coverage(self) -> dict[str, Any]:
        """Value of the column `coverage`: what was read."""
        return {
            "mode": self.mode,
            "followed": len(self._all),
            "page_count": self._count,
            "invocations": self.invocations,
            "pages_read": self.pages_read,
            "slots_written": self.slots_written,
            "pages_offered": self._offered,
            "not_judged": sorted(self._unsure - {PADDING_PAGE}),
            "undecided": sorted({pending.page for pending in self._pending}),
            "unchecked": self.unchecked,
        }

    def _spares(self, phase: str, arrays: dict[str, Any]) -> bool:
        """Return whether an invocation certainly wrote to no followed page. Hot path."""
        try:
            (rows, blocks), tables = arrays["block_tables"]
            if phase == "decode":
                starts, stride = arrays["start_positions"][1], self._stride
                tables = [tables[row * blocks + starts[row] // stride] for row in range(rows)]
        except (KeyError, ValueError, IndexError):
            return False  # its arguments could not be read
        return self._followed.isdisjoint(tables)

    # -- what stays ------------------------------------------------------------------------

    def _look(self, pages: Sequence[int], moment: str, request_id: str | None = None) -> None:
        """Read followed pages, and compare them with their last content."""
        pages = [p for p in pages if p not in self._unsure and not self._is_settling(p)]
        if not pages:
            return
        self.pages_read += len(pages)
        held = self._of_pages(pages)
        known = self._known[pages]
        unlike, all_known = held != self._digest[pages], bool(known.all())
        if all_known and not self._copied and not unlike.any():  # hot path
            self._since[pages] = self._last_begun
            return
        changed = known & unlike.any(axis=(1, 2, 4))
        self._since[pages] = np.where(changed.any(axis=1), self._since[pages], self._last_begun)
        for page in self._copied.keys() & set(pages):
            if not changed[pages.index(page)].any():
                del self._copied[page]
        if not all_known:
            rows, slots = np.nonzero(~known)
            at = np.asarray(pages)[rows]
            self._digest[at, :, :, slots] = held[rows, :, :, slots]
            self._known[at, slots], self._at[at, slots] = True, self._clock
        for row in np.flatnonzero(changed.any(axis=1)).tolist():
            page = pages[row]
            pending = Pending(
                page, np.flatnonzero(changed[row]).tolist(), held[row], self._at[page].copy(),
                set(self._air), moment, int(self._since[page]), self._last_begun,
                self.recorder.holders_of(page), request_id,
            )  # fmt: skip
            if not pending.invocations:
                self._changed(pending)
            elif len(self._pending) < _MOST_PENDING:
                self._pending.append(pending)
            else:
                self.unchecked += 1

    def _settle(self, invocation: int, written: frozenset[int]) -> None:
        """Check changes that waited for an ended invocation, except for its own writes."""
        left = []
        for pending in self._pending:
            if invocation in pending.invocations:
                pending.invocations.discard(invocation)
                first = pending.page * self._stride
                pending.slots = [s for s in pending.slots if first + s not in written]
            if pending.invocations and pending.slots:
                left.append(pending)
            else:
                self._changed(pending)
        self._pending = left

    def _changed(self, pending: Pending) -> None:
        """Report changed slots, unless they were written or reported since."""
        page, at = pending.page, self._at[pending.page]
        slots = [s for s in pending.slots if self._known[page, s] and at[s] == pending.at[s]]
        if not slots:
            return
        was, held = self._digest[page][:, :, slots], pending.held[:, :, slots]
        parts = (was != held).any(axis=2)  # [layers, 2, heads]
        change = {
            "slots": slots,
            "blocks": blocks_of(parts),
            **self._origin(page, slots, was != held, held),
            "moment": pending.moment,
            "since_invocation": pending.since,
            "seen_invocation": pending.seen,
            "holders": pending.holders,
            "copy_of": copy.source if (copy := self._copied.pop(page, None)) else None,
        }
        self._clock += 1
        self._former.extend((page, s, was[:, :, i].copy()) for i, s in enumerate(slots))
        self._digest[page][:, :, slots] = held
        self._at[page, slots] = self._clock
        self._token[page, slots] = UNKNOWN_TOKEN
        self._since[page] = self._last_begun
        self.recorder.event("bytes_changed", request_id=pending.request_id, pages=[page],
                            value=slots[0], changed_bytes=change)  # fmt: skip

    # -- what arrives ----------------------------------------------------------------------

    def _arrive(
        self, invocation: int, request_ids: Sequence[str], wrote: Written, begun: int
    ) -> None:
        """Read the slots that an invocation wrote, and report lost writes."""
        if self.mode == "sampled":
            wrote.only(self._follows)
        pages, slots, tokens, real = wrote.pages, wrote.slots, wrote.tokens, wrote.real
        if not len(pages):
            return
        held = self._of_slots(pages, slots)
        same = held == self._digest[pages, :, :, slots]
        self.slots_written += int(real.sum())
        if same.any() or not held.all():  # else everything is new, and no write was lost
            self._tell_lost(invocation, request_ids, wrote, begun, held, same)
        # The write of a padding token is known only if it changed something.
        if not real.all():
            tokens = np.where(real | ~same.all(axis=(1, 2, 3)), tokens, UNKNOWN_TOKEN)
        self._token[pages, slots] = tokens
        self._digest[pages, :, :, slots] = held
        self._known[pages, slots], self._at[pages, slots] = True, self._clock
        for page in self._copied.keys() & set(pages.tolist()):
            del self._copied[page]

    def _tell_lost(
        self,
        invocation: int,
        request_ids: Sequence[str],
        wrote: Written,
        begun: int,
        held: Digests,
        same: Mask,
    ) -> None:
        """Report written slots with a part that is unchanged or zero."""
        pages, slots, tokens, real = wrote.pages, wrote.slots, wrote.tokens, wrote.real
        checked = real & self._known[pages, slots] & (self._at[pages, slots] < begun)
        if self._unsure:
            checked &= ~np.isin(pages, list(self._unsure))
        before = self._token[pages, slots]
        lost = self._lost(held, same, checked, before, tokens) | ((held == 0) & aligned(real))
        suspects = lost.any(axis=(1, 2, 3))
        other = (before != tokens) & (before != UNKNOWN_TOKEN) & checked
        for page in dict.fromkeys(pages[suspects].tolist()):
            here = np.flatnonzero(suspects & (pages == page))
            kept = [
                {
                    "slot": int(slots[i]),
                    "whole": bool(lost[i].all()),
                    "blocks": blocks_of(lost[i]),
                    "zeros": bool((held[i][lost[i]] == 0).all()),
                    "other_token": bool(other[i]),
                }
                for i in here.tolist()
            ]
            request_id = request_ids[int(wrote.rows[here[0]])]
            self.recorder.event("bytes_kept", request_id=request_id, pages=[page],
                                value=invocation, kept_bytes=kept)  # fmt: skip

    # -- the rest --------------------------------------------------------------------------

    def _copy(self, source: int, target: int) -> None:
        """Record that a page becomes a copy of another; the device may copy later."""
        self._clock += 1
        self._at[target] = self._clock
        self._known[target] = self._known[source] & (source not in self._unsure)
        self._digest[target], self._token[target] = self._digest[source], self._token[source]
        self._copied[target] = Copy(source, self._last_begun + 1, set(self._air))

    def _distrust(self, request_ids: Sequence[str], wrote: Written | None) -> None:
        """Record that an invocation wrote unknown slots, and may still be writing."""
        for request_id in request_ids:
            self._unsure.update(self.recorder.held_by(request_id))
        if wrote is not None:
            self._unsure.update(wrote.pages.tolist())
        self._pending = [p for p in self._pending if p.page not in self._unsure]
