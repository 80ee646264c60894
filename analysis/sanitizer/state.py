"""The state of one engine for the rules, derived from its events and invocations."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.recording.replay import REPLAYED, Replay
from analysis.recording.writes import PADDING_PAGE
from analysis.sanitizer.sequence import Sequence
from analysis.sanitizer.shadow import Shadow
from analysis.sanitizer.trace import Event, UnknownInvocation
from analysis.snapshots.snapshot import Snapshot

SERVED = ("ok", "wrong", "rejected", "empty")
"""Outcomes of requests that the engine ended."""
GIVEN_UP = ("timeout", "engine_died")
"""Outcomes of requests that the engine had not ended."""
_ENDED = 1000
"""Number of ended requests kept in full, because their last events may come late."""


class EngineState(Replay):
    """The cache, the requests and the shadow, event by event."""

    def __init__(self, first: Snapshot, stride: int) -> None:
        super().__init__(first)
        self.stride = stride
        in_use = sorted({*range(self.page_count)} - self.free)
        self.shadow = Shadow(self.page_count, stride, in_use)
        self.written_by: list[NDArray[Any]] = [self.shadow.writer]
        """Arrays of sequence numbers; the names of sequences in them are kept."""
        self._names: dict[int, str] = {}
        self._sequences = itertools.count()
        self._named = _ENDED
        """Number of names at which unused names are removed."""
        self._ended: deque[Sequence] = deque()
        """Ended sequences in `last_of`, in order of their end."""
        self.under_way: dict[str, Sequence] = {}
        """Requests that were submitted and have not ended."""
        self.last_of: dict[str, Sequence] = {}
        """The last sequence of every request, except requests that ended long ago.

        Requests that hold pages, or that the engine has not ended, are kept.
        """
        self.holders: dict[int, set[str]] = {}
        """Requests that hold a page."""
        for request_id, pages in self.held.items():
            for page in pages:
                self.holders.setdefault(page, set()).add(request_id)
        self.preexisting = frozenset(self.held)
        """Requests that were under way when the recording began; they are not checked."""
        self.node_at: dict[int, int] = {
            node.page: number for number, node in self.nodes.items() if node.page is not None
        }
        self.children: Counter[int] = Counter(
            node.parent for node in self.nodes.values() if node.parent is not None
        )
        self.balance: dict[str | None, Counter[int]] = {}
        """References that each request took and did not release, by node."""
        self.unaccounted: dict[int, Event] = {}
        """Pages that are not free, held or cached, each with its last event."""
        self.last_free: dict[int, tuple[str | None, int]] = {}
        """The request and `seq` of each page's last free."""
        self.uncounted = 0
        """Free pages of the pool in excess of its recorded operations."""
        self.pool_threads: set[str | None] = set()
        self.quarantined: set[int] = set()
        """Dropped pages that a treatment withholds."""
        self.context_length: int | None = None
        """Context length of the model, in tokens; None if unknown."""
        self.last_invocation = -1
        """The last invocation that began."""
        self.unfinished: set[str] = set()
        """Requests of invocations that had not finished when the recording ended."""
        self._late: set[str] = set()
        self.given_up: set[str] = set()
        """Requests that their clients gave up and the engine has not ended."""
        self.remarks: list[str] = []
        """Notes of rules on what they could not decide."""
        self.has_starts = False
        """Whether prefills have start positions (after cached prefixes)."""

    # -- queries ---------------------------------------------------------------------------

    def name(self, number: int) -> str | None:
        """Return the request of a sequence number, None if unknown."""
        return self._names.get(number)

    def where(self, page: int) -> str:
        """Return the state of a page in words."""
        if not 0 <= page < self.page_count:
            return f"beyond the pool of {self.page_count} pages"
        if page in self.free:
            if (last := self.last_free.get(page)) is None:
                return "free"
            by = f"by {last[0]} " if last[0] else ""
            return f"free (freed {by}at event {last[1]})"
        if holders := self.holders.get(page):
            return f"held by {' and '.join(sorted(holders))}"
        if page in self.node_at:
            return f"cached in node {self.node_at[page]}"
        return "pending free" if page in self.duplicates else "leaked"

    def place(self, slot: int) -> str:
        """Return a slot's place in words; `slot` is page * stride + offset."""
        return f"slot {slot % self.stride} of page {slot // self.stride}"

    def is_leaked(self, page: int) -> bool:
        """Return whether a page has no owner: not free, held, cached, quarantined or withheld."""
        return not (
            page in self.free
            or page in self.holders
            or page in self.node_at
            or page in self.duplicates
        )

    def holders_of_node(self, node: int) -> list[str]:
        """Return the requests with references to a node."""
        return [r for r, held in self.balance.items() if r is not None and held[node] > 0]

    def path(self, node: int) -> list[int]:
        """Return the tokens from the root to the end of a node; [] if it is not in the trie."""
        blocks = []
        number: int | None = node
        while number is not None and (found := self.nodes.get(number)) is not None:
            blocks.append(found.tokens)
            number = found.parent
        return [token for block in reversed(blocks) for token in block] if number is None else []

    # -- events ----------------------------------------------------------------------------

    def step(self, event: Event) -> None:
        """Apply one event."""
        action = getattr(self, f"_see_{event.kind}", None)
        if action is not None:
            action(event)
        if event.kind in REPLAYED:
            self._one(event)
        self.seq = event.seq

    def _see_submitted(self, event: Event) -> None:
        request = event.request
        sequence = Sequence(next(self._sequences), request, event.tokens or None)
        self._name(sequence)
        self.last_of.pop(request, None)  # the last one comes last
        self.under_way[request] = self.last_of[request] = sequence
        self._late.discard(request)
        self.given_up.discard(request)

    def _name(self, sequence: Sequence) -> None:
        """Store a sequence's name, and remove unused names."""
        if len(self._names) >= self._named:
            kept = set(np.concatenate([np.unique(numbers) for numbers in self.written_by]).tolist())
            kept.update(known.number for known in self.last_of.values())
            self._names = {n: name for n, name in self._names.items() if n in kept}
            self._named = 2 * len(self._names) + _ENDED
        self._names[sequence.number] = sequence.request_id

    def _end(self, sequence: Sequence) -> None:
        """Remove sequences that ended long ago and hold nothing."""
        self._ended.append(sequence)
        for _ in range(2):  # two for each new one, so that kept ones are visited again
            if len(self._ended) <= _ENDED:
                return
            old = self._ended.popleft()
            request = old.request_id
            if self.last_of.get(request) is not old:
                continue  # the request was submitted again
            if request in self.held or request in self.given_up:
                self._ended.append(old)
            else:
                del self.last_of[request]
                self.balance.pop(request, None)

    def _see_token(self, event: Event) -> None:
        if (sequence := self.last_of.get(event.request)) is not None:
            sequence.answer.append(event.value)

    _see_first_token = _see_token

    def _see_chosen(self, event: Event) -> None:
        if (sequence := self.last_of.get(event.request)) is not None:
            if sequence.answer and not sequence.chosen:
                sequence.follows = False  # its first tokens were chosen before they were recorded
            sequence.chosen.append(event.value)

    def _see_answered(self, event: Event) -> None:
        if (sequence := self.last_of.get(event.request)) is not None:
            sequence.answers += 1

    def _see_done(self, event: Event) -> None:
        sequence = self.under_way.pop(event.request, None)
        if event.outcome in GIVEN_UP and event.request not in self._late:
            self.given_up.add(event.request)
        self._late.discard(event.request)
        if sequence is not None:
            sequence.done = event.outcome
            self._end(sequence)

    def _see_late(self, event: Event) -> None:
        if event.request in self.under_way:  # its event `done` follows
            self._late.add(event.request)
        self.given_up.discard(event.request)

    def _see_acquire(self, event: Event) -> None:
        self.pool_threads.add(event.thread)
        for page in event.pages:
            self.unaccounted[page] = event
            self.shadow.allocate(page)

    def _see_free(self, event: Event) -> None:
        self.pool_threads.add(event.thread)
        for page in event.pages:
            self.unaccounted.pop(page, None)
            self.quarantined.discard(page)
            self.last_free[page] = event.request_id, event.seq
            if 0 <= page < self.page_count:
                self.shadow.freed_after[page] = self.last_invocation

    def _see_pages_held(self, event: Event) -> None:
        for page in event.pages:
            self.holders.setdefault(page, set()).add(event.request)
            self.unaccounted.pop(page, None)

    def _see_pages_dropped(self, event: Event) -> None:
        for page in event.pages:
            holders = self.holders.get(page, set())
            holders.discard(event.request)
            if not holders:
                self.holders.pop(page, None)
            self._check_account(page, event)

    def _see_quarantined(self, event: Event) -> None:
        self.quarantined.update(event.pages)

    def _see_create(self, event: Event) -> None:
        assert event.node is not None
        self.node_at[event.pages[0]] = event.node
        self.children[event.parent or 0] += 1
        self.unaccounted.pop(event.pages[0], None)

    def _see_unlink(self, event: Event) -> None:
        assert event.node is not None
        node = self.nodes.get(event.node)
        if (without_request := self.balance.get(None)) is not None:
            without_request.pop(event.node, None)  # `done` will not remove it
        if node is None:
            return
        if node.parent is not None:
            self.children[node.parent] -= 1
            if self.children[node.parent] <= 0:
                del self.children[node.parent]
        if node.page is not None and self.node_at.get(node.page) == event.node:
            del self.node_at[node.page]
            self._check_account(node.page, event)

    _see_node_overwritten = _see_unlink

    def _see_reference(self, event: Event) -> None:
        assert event.node is not None
        balance = self.balance.setdefault(event.request_id, Counter())
        balance[event.node] += (event.ref_count or 0) - (event.ref_before or 0)
        if not balance[event.node]:
            del balance[event.node]
            if not balance:
                del self.balance[event.request_id]

    def _see_copy(self, event: Event) -> None:
        source, target = event.pages[:2]
        self.shadow.copy(source, target)

    def _check_account(self, page: int, event: Event) -> None:
        # A freed page may already belong to a request that has not listed it yet.
        if self.is_leaked(page) and page not in self.unaccounted:
            self.unaccounted[page] = event

    # -- unknown invocations ---------------------------------------------------------------

    def skip(self, invocation: UnknownInvocation) -> None:
        """Apply an unknown invocation: the content of its requests' pages becomes unknown.

        If its step is known, its requests advance as if it was executed.
        """
        self.last_invocation = invocation.invocation_id
        if not invocation.finished:
            self.unfinished.update(invocation.request_ids)
        self.shadow.forget(PADDING_PAGE)
        for request_id in invocation.request_ids:
            for page in self.held.get(request_id, ()):
                self.shadow.forget(page)
            sequence = self.last_of.get(request_id)
            if sequence is not None:
                sequence.result = None  # its logits are unknown
                if invocation.done:
                    self._skip_step(sequence, invocation)

    def _skip_step(self, sequence: Sequence, invocation: UnknownInvocation) -> None:
        first, prompt, phase = sequence.length, sequence.prompt or (), invocation.phase
        place = first - len(prompt)
        if phase == "prefill" and prompt and not self.has_starts:
            sequence.restart(np.array(prompt, dtype=np.int64), 0)
            first = 0
        elif (
            phase == "decode"
            and prompt
            and 0 <= place < len(sequence.answer)
            and (token := sequence.answer[place]) is not None
        ):
            sequence.append(token)
        else:
            sequence.unknown = True
            return
        sequence.step(phase, first, invocation.invocation_id)
