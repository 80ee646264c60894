"""What the rules look at: requests, pages, the trie and the shadow, as the stream so far tells."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.recording.replay import Replay
from analysis.sanitizer.shadow import Hashes, Ints, Shadow, mix_one, prefix_hashes
from analysis.snapshots.snapshot import Snapshot

PADDING_PAGE = 0
"""The page that rows and block tables are padded with, in every release of shortfin."""
ENDED_WELL = ("ok", "wrong", "rejected")
_ALL = 2**64 - 1
_ENDED = 1000
"""Requests that have ended and are still known in full: invocations, tokens and releases come late.
"""


class Event(NamedTuple):
    """A row of the table `events`."""

    seq: int
    t_s: float
    thread: str | None
    request_id: str | None
    operation: str | None
    kind: str
    pages: tuple[int, ...]
    free_pages: int | None
    node: int | None
    parent: int | None
    ref_before: int | None
    ref_count: int | None
    value: int | None
    digest: int | None
    locks: tuple[str, ...] | None
    stack: Any
    extras: Mapping[str, Any] = {}
    """The columns that only some kinds have (`EVENT_EXTRAS`), but for `digest`."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of a prompt, an answer or a node."""
        return tuple(self.extras.get("tokens") or ())

    @property
    def outcome(self) -> str | None:
        """How a request ended."""
        return self.extras.get("outcome")

    @property
    def message(self) -> str | None:
        """Text of an error."""
        return self.extras.get("message")


@dataclass(eq=False)
class Invocation:
    """A call of the compiled model, with its arguments as the device got them."""

    invocation_id: int
    phase: str
    request_ids: list[str]
    tokens: Ints
    """[rows, 1] of a decode, [rows, length] of a prefill; int64, as the others."""
    seq_lens: Ints
    """[rows]"""
    starts: Ints | None
    """[rows]; None for a prefill from the first position on."""
    tables: Ints
    """Block tables, [rows, blocks]."""
    seq: int
    end_seq: int
    thread: str | None
    t_s: float
    result_tokens: list[int] | None = None
    """What a greedy selection makes of each real row's logits, -1 of NaN; None if not noted."""
    result_digests: list[int] | None = None
    """Digest of each real row's logits."""
    changed: Iterable[Mapping[str, Any]] | None = None
    """Arguments that were not read as they were filled: column `changed`."""

    def result(self, row: int) -> Result | None:
        """Return what came of a real row; None if it was not noted."""
        if not self.result_tokens or not self.result_digests:
            return None
        return Result(self.invocation_id, self.result_digests[row], self.result_tokens[row])

    @property
    def real(self) -> int:
        """Rows that carry a request; the rest is padding."""
        return len(self.request_ids)


@dataclass
class Result:
    """What an invocation gave one of its rows."""

    invocation_id: int
    digest: int
    """Of its logits."""
    token: int
    """The likeliest one; negative where there is a NaN."""
    used: bool = False
    """Whether a token was chosen from it."""


@dataclass(eq=False)
class Unread:
    """A call of the compiled model that failed or has not ended, or with arguments unknown."""

    invocation_id: int
    request_ids: list[str]
    phase: str = ""
    reason: str = "its arguments could not be read"
    """Why it cannot be checked."""
    done: bool = True
    """Whether it did its work all the same, as far as that is known."""
    landed: bool = True


class Sequence:
    """A request's tokens, as far as their keys and values should be in the cache."""

    def __init__(self, number: int, request_id: str, prompt: tuple[int, ...] | None) -> None:
        self.number, self.request_id = number, request_id
        self.prompt = prompt
        self.answer: list[int | None] = []
        """Tokens that the engine chose, in order; None where it did not show which."""
        self.length = 0
        """Positions that were flown."""
        self.chosen: list[int | None] = []
        """Tokens as they were chosen; None where the selection is not followed."""
        self.follows = True
        """Whether `chosen` has them from the first."""
        self.answers = 0
        """Answers that were delivered."""
        self.result: Result | None = None
        """What the last invocation gave that a token may come from."""
        self.takeoffs = 0
        """Invocations that a token of the answer may come from."""
        self.lost = False
        """Whether an invocation of it could not be read, so that nothing more is known of it."""
        self.prefilled: tuple[int, int, int] | None = None
        """First position of its last prefill, the one after its last, and its invocation."""
        self.last_invocation = -1
        """The invocation of its last step."""
        self.done: str | None = None
        """How it ended, None while it is under way."""
        self._hashes: Hashes = np.zeros(64, dtype=np.uint64)

    @property
    def hashes(self) -> Hashes:
        """Hash of the prefix up to each position that was flown, [length]."""
        return self._hashes[: self.length]

    @property
    def last(self) -> int:
        """Hash of all that was flown."""
        return int(self._hashes[self.length - 1]) if self.length else 0

    def restart(self, tokens: Ints, first_position: int) -> None:
        """Take note of a prefill of these tokens from a position on."""
        self.length = min(first_position, self.length)
        hashes = prefix_hashes(tokens, self.length, self.last)
        self._room(self.length + len(tokens))
        self._hashes[self.length : self.length + len(tokens)] = hashes
        self.length += len(tokens)

    def append(self, token: int) -> None:
        """Take note of one more token."""
        self._room(self.length + 1)
        self._hashes[self.length] = self.last + mix_one(token, self.length) & _ALL
        self.length += 1

    @property
    def chose_next(self) -> bool:
        """Whether the token is chosen that its next decode goes on with."""
        return self.prompt is None or len(self.answer) > self.length - len(self.prompt)

    def step(self, phase: str, first: int, invocation_id: int) -> None:
        """Take note of the invocation by which it came to its length."""
        self.last_invocation = invocation_id
        if phase == "prefill":
            self.prefilled = first, self.length, invocation_id
        self.takeoffs += self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether a token may come next: none does from the first chunks of a prompt."""
        return self.prompt is None or self.length >= len(self.prompt)

    def hash_before(self, position: int) -> int:
        """Return the hash of the prefix that ends before a position."""
        return int(self._hashes[min(position, self.length) - 1]) if position and self.length else 0

    def _room(self, length: int) -> None:
        if length > len(self._hashes):
            larger = np.zeros(2 * length, dtype=np.uint64)
            larger[: self.length] = self._hashes[: self.length]
            self._hashes = larger


@dataclass
class _Owed:
    """A page that was last seen in a request's or an operation's hands."""

    request_id: str | None
    event: Event


class World(Replay):
    """The state of one engine as its events and invocations tell it, event by event."""

    def __init__(self, first: Snapshot, stride: int) -> None:
        super().__init__(first)
        self.stride = stride
        in_use = sorted({*range(self.page_count)} - self.free)
        self.shadow = Shadow(self.page_count, stride, in_use)
        self.written_by: list[NDArray[Any]] = [self.shadow.writer]
        """Arrays of sequences' numbers: what has its number in one keeps its request's name."""
        self._names: dict[int, str] = {}
        """Requests by the numbers of their sequences, but for those that nothing has any more."""
        self._sequences = itertools.count()
        self._named = _ENDED
        """With so many names those are sought that nothing has."""
        self._ended: deque[Sequence] = deque()
        """Sequences in `last_of` that have ended, in order."""
        self.under_way: dict[str, Sequence] = {}
        """Requests that were sent in and have not ended."""
        self.last_of: dict[str, Sequence] = {}
        """The last sequence of every request that was seen, but for those that ended long ago.

        One that holds pages, or that the engine has yet to end, is not forgotten.
        """
        self.holders: dict[int, set[str]] = {}
        """Requests that hold a page."""
        for request_id, pages in self.held.items():
            for page in pages:
                self.holders.setdefault(page, set()).add(request_id)
        self.strangers = frozenset(self.held)
        """Requests that were under way already; nothing is said about them."""
        self.node_at: dict[int, int] = {
            node.page: number for number, node in self.nodes.items() if node.page is not None
        }
        self.children: Counter[int] = Counter(
            node.parent for node in self.nodes.values() if node.parent is not None
        )
        self.balance: dict[str | None, Counter[int]] = {}
        """References that each request took and did not give back, by node."""
        self.owed: dict[int, _Owed] = {}
        """Pages in no free list, nobody's hands and not in the trie, by page."""
        self.uncounted = 0
        """By how many pages the pool's free list is larger than what its operations made it."""
        self.pool_threads: set[str | None] = set()
        self.resting: set[int] = set()
        """Pages that were given up, and that a treatment holds back."""
        self.context: int | None = None
        """Positions that the model was made for; None if that is not known."""
        self.invocations_begun = -1
        """The last invocation that began."""
        self.unlanded: set[str] = set()
        """Requests of invocations that had not ended when the recording did."""
        self._late: set[str] = set()
        self.given_up: set[str] = set()
        """Requests that their clients gave up, and that the engine has not ended."""
        self.remarks: list[str] = []
        """What rules could not decide, in sentences."""
        self.has_starts = False
        """Whether prefills begin at positions of their own, behind cached prefixes."""

    # -- what is where ---------------------------------------------------------------------

    @property
    def references(self) -> dict[int, int]:
        """References to every node, as the engine counts them."""
        return self._references

    @property
    def leaves(self) -> set[int]:
        """Nodes in the engine's set of leaves."""
        return self._leaves

    def name(self, number: int) -> str | None:
        """Return the request that a sequence's number stands for, None if it is not known."""
        return self._names.get(number)

    def where(self, page: int) -> str:
        """Say in whose hands a page is."""
        if not 0 <= page < self.page_count:
            return f"beyond the pool of {self.page_count} pages"
        if page in self.free:
            return "free"
        if who := self.holders.get(page):
            return f"held by {' and '.join(sorted(who))}"
        if page in self.node_at:
            return f"cached in node {self.node_at[page]}"
        return "set aside" if page in self.duplicates else "in nobody's hands"

    def is_lost(self, page: int) -> bool:
        """Tell whether nothing can reach a page."""
        return not (
            page in self.free
            or page in self.holders
            or page in self.node_at
            or page in self.duplicates
        )

    def path(self, node: int) -> list[int]:
        """Return the tokens from the root to the end of a node; [] if it hangs on nothing."""
        blocks = []
        number: int | None = node
        while number is not None and (found := self.nodes.get(number)) is not None:
            blocks.append(found.tokens)
            number = found.parent
        return [token for block in reversed(blocks) for token in block] if number is None else []

    # -- going on --------------------------------------------------------------------------

    def step(self, event: Event) -> None:
        """Take note of one event."""
        action = getattr(self, f"_see_{event.kind}", None)
        if action is not None:
            action(event)
        self.seq = event.seq

    def _see_submitted(self, event: Event) -> None:
        assert event.request_id is not None
        prompt = event.tokens or None
        sequence = Sequence(next(self._sequences), event.request_id, prompt)
        self._name(sequence)
        self.last_of.pop(event.request_id, None)  # the last one comes last
        self.under_way[event.request_id] = self.last_of[event.request_id] = sequence
        self._late.discard(event.request_id)
        self.given_up.discard(event.request_id)

    def _name(self, sequence: Sequence) -> None:
        """Keep a sequence's name as long as its number is in an array."""
        if len(self._names) >= self._named:
            kept = set(np.concatenate([np.unique(numbers) for numbers in self.written_by]).tolist())
            kept.update(known.number for known in self.last_of.values())
            self._names = {n: name for n, name in self._names.items() if n in kept}
            self._named = 2 * len(self._names) + _ENDED
        self._names[sequence.number] = sequence.request_id

    def _end(self, sequence: Sequence) -> None:
        """Forget who ended long ago and has nothing any more."""
        self._ended.append(sequence)
        for _ in range(2):  # one more than comes, so that those who were not ready are come to
            if len(self._ended) <= _ENDED:
                return
            old = self._ended.popleft()
            request = old.request_id
            if self.last_of.get(request) is not old:
                continue  # its name was sent in again
            if request in self.held or request in self.given_up:
                self._ended.append(old)
            else:
                del self.last_of[request]
                self.balance.pop(request, None)

    def _see_first_token(self, event: Event) -> None:
        sequence = self.last_of.get(event.request_id or "")
        if sequence is not None:
            sequence.answer.append(event.value)

    _see_token = _see_first_token

    def _see_chosen(self, event: Event) -> None:
        sequence = self.last_of.get(event.request_id or "")
        if sequence is not None:
            if sequence.answer and not sequence.chosen:
                sequence.follows = False  # it was not watched so closely when it began
            sequence.chosen.append(event.value)

    def _see_answered(self, event: Event) -> None:
        sequence = self.last_of.get(event.request_id or "")
        if sequence is not None:
            sequence.answers += 1

    def _see_done(self, event: Event) -> None:
        request = event.request_id or ""
        sequence = self.under_way.pop(request, None)
        if event.outcome in ("timeout", "engine_died") and request not in self._late:
            self.given_up.add(request)
        self._late.discard(request)
        if sequence is not None:
            sequence.done = event.outcome
            self._end(sequence)

    def _see_late(self, event: Event) -> None:
        if event.request_id in self.under_way:  # only then its end is told afterwards
            self._late.add(event.request_id)
        self.given_up.discard(event.request_id or "")

    def _see_acquire(self, event: Event) -> None:
        self._one(event)
        self.pool_threads.add(event.thread)
        for page in event.pages:
            self.owed[page] = _Owed(event.request_id, event)
            self.shadow.know(page)

    def _see_free(self, event: Event) -> None:
        self._one(event)
        self.pool_threads.add(event.thread)
        for page in event.pages:
            self.owed.pop(page, None)
            self.resting.discard(page)
            if 0 <= page < self.page_count:
                self.shadow.freed_after[page] = self.invocations_begun

    def _see_pages_held(self, event: Event) -> None:
        self._one(event)
        for page in event.pages:
            self.holders.setdefault(page, set()).add(event.request_id or "")
            self.owed.pop(page, None)

    def _see_pages_dropped(self, event: Event) -> None:
        self._one(event)
        for page in event.pages:
            holders = self.holders.get(page, set())
            holders.discard(event.request_id or "")
            if not holders:
                self.holders.pop(page, None)
            self._owe(page, event)

    def _see_duplicate(self, event: Event) -> None:
        self._one(event)

    def _see_quarantined(self, event: Event) -> None:
        self._one(event)
        self.resting.update(event.pages)

    def _see_create(self, event: Event) -> None:
        self._one(event)
        assert event.node is not None
        self.node_at[event.pages[0]] = event.node
        self.children[event.parent or 0] += 1
        self.owed.pop(event.pages[0], None)

    def _see_node_overwritten(self, event: Event) -> None:
        self._leaves_trie(event)

    def _see_unlink(self, event: Event) -> None:
        self._leaves_trie(event)

    def _leaves_trie(self, event: Event) -> None:
        assert event.node is not None
        node = self.nodes.get(event.node)
        self._one(event)
        if (nobodys := self.balance.get(None)) is not None:
            nobodys.pop(event.node, None)  # there is no end of anybody at which it would go
        if node is None:
            return
        if node.parent is not None:
            self.children[node.parent] -= 1
            if self.children[node.parent] <= 0:
                del self.children[node.parent]
        if node.page is not None and self.node_at.get(node.page) == event.node:
            del self.node_at[node.page]
            self._owe(node.page, event)

    def _see_reference(self, event: Event) -> None:
        self._one(event)
        assert event.node is not None
        change = (event.ref_count or 0) - (event.ref_before or 0)
        balance = self.balance.setdefault(event.request_id, Counter())
        balance[event.node] += change
        if not balance[event.node]:
            del balance[event.node]
            if not balance:
                del self.balance[event.request_id]

    def _see_leaf_added(self, event: Event) -> None:
        self._one(event)

    _see_leaf_removed = _see_leaf_added

    def _see_copy(self, event: Event) -> None:
        source, target = event.pages[:2]
        self.shadow.copy(source, target)

    def _owe(self, page: int, event: Event) -> None:
        # One that was freed meanwhile may be another's already, who has yet to put it on its list.
        if self.is_lost(page) and page not in self.owed:
            self.owed[page] = _Owed(event.request_id, event)

    def lose(self, invocation: Unread) -> None:
        """Take note that an invocation wrote nobody knows what into its requests' pages.

        Its requests go on as if it had done its step, where it is known which that was.
        """
        self.invocations_begun = invocation.invocation_id
        if not invocation.landed:
            self.unlanded.update(invocation.request_ids)
        self.shadow.forget(PADDING_PAGE)
        for request_id in invocation.request_ids:
            for page in self.held.get(request_id, ()):
                self.shadow.forget(page)
            sequence = self.last_of.get(request_id)
            if sequence is None:
                continue
            sequence.result = None  # its logits are not known
            if not invocation.done:
                continue
            first, prompt = sequence.length, sequence.prompt
            place = first - len(prompt or ())
            if invocation.phase == "prefill" and prompt and not self.has_starts:
                sequence.restart(np.array(prompt, dtype=np.int64), 0)
                first = 0
            elif (
                invocation.phase == "decode"
                and prompt
                and 0 <= place < len(sequence.answer)
                and (token := sequence.answer[place]) is not None
            ):
                sequence.append(token)
            else:
                sequence.lost = True
                continue
            sequence.step(invocation.phase, first, invocation.invocation_id)
