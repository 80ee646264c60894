"""A correct scheduler is never blamed, and one wrong argument of an invocation always is.

The scheduler here is written for the purpose and keeps, apart from the events it emits, what the
device's memory must hold: that decides whether a changed argument matters.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trace_builder import Row, TraceBuilder

from analysis.sanitizer.findings import WRONG_DATA
from analysis.sanitizer.trace import Invocation

PAGES = 20
Memory = dict[int, tuple[int, ...]]
"""The tokens up to the one whose key and value a slot holds, by slot."""


@dataclass
class Request:
    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    pages: list[int] = field(default_factory=list)
    executed: int = 0
    node: int = 0
    """The deepest node of the trie that it refers to."""
    pending: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.answer


class Scheduler:
    """Serves random requests correctly, and writes the events to a trace."""

    def __init__(self, seed: int, *, sharing: bool) -> None:
        self.random = random.Random(seed)
        self.stride = self.random.choice((2, 3, 4))
        self.story = TraceBuilder(PAGES, self.stride)
        self.sharing = sharing
        self.free = list(range(1, PAGES))  # all but the padding page
        self.random.shuffle(self.free)
        self.served: list[Request] = []
        self.under_way: list[tuple[Invocation, list[Request]]] = []
        self.nodes: dict[tuple[int, ...], int] = {}
        self.memory: Memory = {}
        self.before: list[Memory] = []
        """What memory held before each invocation."""
        self.invocations: list[Invocation] = []
        self.of: dict[str, Request] = {}

    def run(self, count: int) -> TraceBuilder:
        stems = [self._tokens(1, 9) for _ in range(2)]
        waiting = []
        for number in range(count):
            stem = self.random.choice(stems)
            prompt = stem[: self.random.randint(0, len(stem))] + self._tokens(1, 6)
            waiting.append(Request(f"r{number}", prompt, self._tokens(1, 6)))
        while waiting or self.served or self.under_way:
            action = self.random.choice(
                ("submit", "execute", "execute", "execute", "finish", "evict")
            )
            if action == "submit" and waiting and self._submit(waiting[0]):
                waiting.pop(0)
            elif action == "execute":
                self._execute()
            elif action == "finish" and self.under_way:
                self._finish(*self.under_way.pop(self.random.randrange(len(self.under_way))))
            elif action == "evict" and self.nodes:
                self._evict()
        self.story.snapshot()
        return self.story

    def _tokens(self, least: int, most: int) -> tuple[int, ...]:
        length = self.random.randint(least, most)
        return tuple(self.random.randint(1, 99) for _ in range(length))

    # -- pages -----------------------------------------------------------------------------

    def _submit(self, request: Request) -> bool:
        """Take all pages that a request will need, or none."""
        most = -(-len(request.tokens) // self.stride)
        path = []
        while self.sharing and (node := self.nodes.get(self._block(request, len(path) + 1))):
            path.append(node)
        if most - len(path) > len(self.free):
            return False
        story, name = self.story, request.name
        story.submit(name, request.prompt)
        if path:
            request.pages = [story.state.nodes[node].page for node in path]
            with story.within("acquire", name):
                story.match(name, *request.pages, node=path[-1])
                self._refer(request, path[-1])
            story.hold(name, *request.pages)
        own = [self.free.pop() for _ in range(most - len(path))]
        if own:
            story.allocate(name, *own)
        request.pages += own
        self.served.append(request)
        self.of[name] = request
        return True

    def _block(self, request: Request, count: int) -> tuple[int, ...]:
        """Return the prompt's first so many whole pages; nothing where it has not so many."""
        length = count * self.stride
        return request.prompt[:length] if length <= len(request.prompt) else ()

    def _refer(self, request: Request, node: int) -> None:
        if node != request.node:
            self.story.reference(node, +1, request.name)
            if request.node:
                self.story.reference(request.node, -1, request.name)
            request.node = node

    def _publish(self, request: Request) -> None:
        node = 0
        with self.story.within("publish", request.name):
            for count in range(1, len(request.prompt) // self.stride + 1):
                tokens = self._block(request, count)
                if tokens not in self.nodes:
                    page = request.pages[count - 1]
                    block = tokens[-self.stride :]
                    self.story.create(request.name, page, block, node)
                    self.nodes[tokens] = self.story.last_node
                    if node in self.story.state.leaves:
                        self.story.no_leaf(node, request.name)
                    self.story.leaf(self.nodes[tokens], request.name)
                node = self.nodes[tokens]
            if node:
                self._refer(request, node)

    def _evict(self) -> None:
        world = self.story.state
        for tokens, node in self.nodes.items():
            page = world.nodes[node].page
            if not (world.children[node] or world.references.get(node) or page in world.holders):
                self.story.evict(node)
                self.free.insert(0, page)
                del self.nodes[tokens]
                return

    def _end(self, request: Request) -> None:
        self.story.end(request.name)
        self.free += [p for p in request.pages if p in self.story.state.free]
        self.random.shuffle(self.free)
        self.served.remove(request)

    # -- invocations ---------------------------------------------------------------------------

    def _execute(self) -> None:
        ready = [r for r in self.served if not r.pending]
        phase = self.random.choice(("prefill", "chunks", "decode"))
        ready = [r for r in ready if (r.executed >= len(r.prompt)) == (phase == "decode")]
        if phase == "prefill":
            ready = [r for r in ready if not r.executed]  # whole prompts
        if not ready:
            return
        batch = self.random.sample(ready, self.random.randint(1, min(4, len(ready))))
        padding = [None] * self.random.randint(0, 2)
        self.before.append(dict(self.memory))
        names = [r.name for r in batch]
        if phase == "decode":
            blocks = self.random.randint(0, 6)
            invocation = self.story.decode(*names, *padding, blocks=blocks, finishes=False)
            ends = [r.executed + 1 for r in batch]
            starts = [r.executed for r in batch]
        elif phase == "prefill":
            invocation = self.story.prefill(*names, *padding, finishes=False)
            ends, starts = [len(r.prompt) for r in batch], [0] * len(batch)
        else:
            starts = [r.executed or self._cached(r) for r in batch]
            ends = [
                self.random.randint(start + 1, len(r.prompt))
                for r, start in zip(batch, starts, strict=True)
            ]
            rows = [Row(*row) for row in zip(names, [None] * len(names), starts, ends, strict=True)]
            invocation = self.story.prefill(*rows, *padding, finishes=False)
        for request, start, end in zip(batch, starts, ends, strict=True):
            request.pending, request.executed = True, end
            for position in range(start, end):
                slot = self.slot(request.pages, position)
                self.memory[slot] = request.tokens[: position + 1]
        self.invocations.append(invocation)
        self.under_way.append((invocation, batch))

    def slot(self, pages, position: int) -> int:
        return int(pages[position // self.stride]) * self.stride + position % self.stride

    def _cached(self, request: Request) -> int:
        """Return from where a prompt must be computed, behind what it shares."""
        if not request.node:
            return 0
        # Not before: padding behind a chunk that ended in a shared page would spoil it.
        return min(len(self.story.state.path(request.node)), len(request.prompt) - 1)

    def _finish(self, invocation: Invocation, batch: list[Request]) -> None:
        self.story.finish(invocation)
        for request in batch:
            request.pending = False
            if request.executed < len(request.prompt):
                continue
            place = request.executed - len(request.prompt)
            if self.sharing and place == 0:
                self._publish(request)
            self.story.token(request.name, request.answer[place])
            if place + 1 == len(request.answer):
                self._end(request)


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.booleans(), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_a_correct_scheduler_has_no_finding(seed, sharing, count):
    scheduler = Scheduler(seed, sharing=sharing)
    findings = scheduler.run(count).check(close=False)
    assert not findings, str(findings)
    assert not findings.notes
    assert findings.slots_read > 0 or all(f.phase == "prefill" for f in scheduler.invocations)


def test_the_scheduler_does_what_it_is_for():
    story, seen = None, set()
    for seed in range(40):
        scheduler = Scheduler(seed, sharing=bool(seed % 2))
        story = scheduler.run(6)
        findings = story.check(close=False)
        invocations = scheduler.invocations
        seen |= {"rewritten"} if findings.rewritten else set()
        seen |= {f.phase + ("" if f.starts is None else " from a start") for f in invocations}
        seen |= {"padding rows" for f in invocations if len(f.tokens) > f.real}
        seen |= {"batches" for f in invocations if f.real > 1}
        seen |= {"overlap" for a, b in itertools.pairwise(invocations) if a.end_seq > b.seq}
        seen |= {getattr(item, "kind", "") for _, item in story.items}
    assert seen >= {
        "rewritten", "prefill", "prefill from a start", "decode from a start", "padding rows",
        "batches", "overlap", "match", "create", "unlink", "reference", "free",
    }  # fmt: skip


def blamed(scheduler: Scheduler, invocation: Invocation, request: str):
    """Check the story anew and return what is found for a request at an invocation."""
    findings = scheduler.story.check(close=False)
    return [f for f in findings.of(request) if f.invocation_id == invocation.invocation_id]


def tokens_of(invocation: Invocation, row: int) -> int:
    """Return how many tokens of a row are no padding."""
    if invocation.phase == "decode":
        return 1
    start = 0 if invocation.starts is None else int(invocation.starts[row])
    return int(invocation.seq_lens[row]) - start


def change_token(scheduler, invocation, row, draw):
    place = draw.randrange(tokens_of(invocation, row))
    invocation.tokens[row, place] += draw.choice((1, 2, 50))


def change_start(scheduler, invocation, row, draw):
    step = draw.choice((-1, 1))
    assume(invocation.starts is not None)
    start, length = int(invocation.starts[row]), int(invocation.seq_lens[row])
    assume(start + step >= 0)
    if invocation.phase == "prefill":
        # The same tokens one place further on are the same, where they are all equal.
        due = scheduler.of[invocation.request_ids[row]].prompt[start + step : length]
        executed = tuple(
            invocation.tokens[row, : max(0, min(len(due), invocation.tokens.shape[1]))].tolist()
        )
        assume(executed and executed != due[: len(executed)])
    invocation.starts[row] += step


def change_length(scheduler, invocation, row, draw):
    step = draw.choice((-1, 1))
    if invocation.phase == "decode":
        # Past its block table there is nothing that it could read.
        size = invocation.tables.shape[1] * scheduler.stride
        assume(invocation.seq_lens[row] + step <= size)
    else:
        # A chunk may end anywhere, and in a prefill nothing reads what follows.
        assume(invocation.starts is None and step < 0)
    invocation.seq_lens[row] += step


def change_page(scheduler, invocation, row, draw):
    """Name another page where the row reads a slot that holds something else there."""
    start = 0 if invocation.starts is None else int(invocation.starts[row])
    request = scheduler.of[invocation.request_ids[row]]
    before = scheduler.before[invocation.invocation_id]
    written = {
        scheduler.slot(invocation.tables[other], position)
        for other in range(len(invocation.tables))
        for first in [0 if invocation.starts is None else int(invocation.starts[other])]
        for position in range(first, first + invocation.tokens.shape[1])
        if position // scheduler.stride < invocation.tables.shape[1]
    }
    choices = []
    for block in {position // scheduler.stride for position in range(start)}:
        for page in range(PAGES):
            table = [*invocation.tables[row, :block], page]
            places = range(block * scheduler.stride, min(start, (block + 1) * scheduler.stride))
            slots = {p: scheduler.slot(table, p) for p in places}
            if any(
                slot not in written and before.get(slot) != request.tokens[: position + 1]
                for position, slot in slots.items()
            ):
                choices.append((block, page))
    assume(choices)
    block, page = draw.choice(choices)
    invocation.tables[row, block] = page


CHANGES = [change_token, change_start, change_length, change_page]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@given(seed=seeds, sharing=st.booleans(), draw=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_one_wrong_argument_is_found_at_its_invocation(change, seed, sharing, draw):
    scheduler = Scheduler(seed, sharing=sharing)
    scheduler.run(4)
    invocation = draw.choice(scheduler.invocations)
    row = draw.randrange(invocation.real)
    change(scheduler, invocation, row, draw)
    found = blamed(scheduler, invocation, invocation.request_ids[row])
    assert WRONG_DATA in {finding.severity for finding in found}, found


@given(seed=seeds, draw=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_foreign_page_in_a_prefill_is_found_before_it_is_read(seed, draw):
    scheduler = Scheduler(seed, sharing=False)
    scheduler.run(4)
    invocation = draw.choice([f for f in scheduler.invocations if f.phase == "prefill"])
    row = draw.randrange(invocation.real)
    blocks = -(-int(invocation.seq_lens[row]) // scheduler.stride)
    request = scheduler.of[invocation.request_ids[row]]
    foreign = sorted({*range(PAGES)} - {*request.pages})
    invocation.tables[row, draw.randrange(blocks)] = draw.choice(foreign)
    assert "block-table-mismatch" in {f.rule for f in blamed(scheduler, invocation, request.name)}


@given(seed=seeds, draw=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_what_lies_beyond_the_own_length_is_a_risk_and_no_wrong_data(seed, draw):
    scheduler = Scheduler(seed, sharing=draw.random() < 0.5)
    scheduler.run(4)
    strange = set()
    for invocation in scheduler.invocations:
        if invocation.phase == "decode":
            for row in range(invocation.real):
                past = int(invocation.seq_lens[row] - 1) // scheduler.stride + 1
                rest = invocation.tables[row, past:]
                rest[:] = [draw.randrange(-1, 2 * PAGES) for _ in rest]
                own = {0, *scheduler.of[invocation.request_ids[row]].pages}
                strange |= {invocation.request_ids[row]} if {*rest.tolist()} - own else set()
    findings = scheduler.story.check(close=False)
    assert {finding.rule for finding in findings} <= {"block-table-padding"}, str(findings)
    assert not findings.wrong_data
    reported = {r for group in findings.groups for r in group.by_request}
    assert reported == strange


def test_a_chunk_cut_short_is_found_at_its_token_and_the_next_invocation():
    # Its own arguments are those of a chunk that ends there, which any may.
    story = TraceBuilder()
    story.submit("a", range(1, 8))
    story.allocate("a", 1, 2)
    story.prefill(Row("a", start=0, seq_len=4))
    cut = story.prefill(Row("a", start=4))
    story.token("a", 100)
    after = story.decode("a")
    assert not story.check(close=False).of("a")[1:]
    cut.seq_lens[0] -= 1
    found = [(f.rule, f.invocation_id) for f in story.check().of("a") if f.severity == WRONG_DATA]
    assert found[0] == ("token-without-invocation", None)
    assert {invocation for _, invocation in found[1:]} == {after.invocation_id}
