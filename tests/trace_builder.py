"""A way to write streams of events and invocations, so that a test states only what is wrong in
them.

Everything is right by default: an invocation has its requests' own tokens, positions, lengths and
pages, a pool counts what it has, and requests still under way at the end are ended properly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from trace_rows import event_row, invocation_row

from analysis.recording.writes import PADDING_PAGE
from analysis.runs.schema import EVENT_EXTRAS
from analysis.sanitizer.checker import Checker
from analysis.sanitizer.findings import Findings
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.trace import Event, Invocation
from analysis.snapshots.snapshot import CacheState, Node, Snapshot

ROOT = Node(0, None, None, (), 0, False)


@dataclass(frozen=True)
class Row:
    """A row of an invocation; what is None is as it should be. Without a request it is padding."""

    request_id: str | None
    tokens: Sequence[int] | None = None
    start: int | None = None
    seq_len: int | None = None
    table: Sequence[int] | None = None


class TraceBuilder:
    """A stream under way; every method that adds an item returns its place or its invocation."""

    def __init__(
        self,
        page_count: int = 8,
        stride: int = 4,
        *,
        nodes: Iterable[Node] = (),
        holdings: dict[str, Sequence[int]] | None = None,
        taken: Iterable[int] = (),
        context: int | None = None,
    ) -> None:
        """Begin with pages in use by nodes, requests or (`taken`) no owner; all others are free."""
        nodes, holdings = (ROOT, *nodes), holdings or {}
        used = {n.page for n in nodes} | {p for pages in holdings.values() for p in pages}
        free = [page for page in range(page_count) if page not in used | set(taken)]
        state = CacheState(page_count, free, holdings, nodes)
        self.stride, self.context = stride, context
        self.first = Snapshot(state, seq=0, t_s=0.0)
        self.state = EngineState(self.first, stride)
        """The cache after the events so far; invocations do not go through it."""
        self.items: list[tuple[int, Event | Invocation | None]] = []
        self.snapshots: list[Snapshot] = []
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.answers: dict[str, list[int]] = {}
        self.pages: dict[str, list[int]] = {r: list(pages) for r, pages in holdings.items()}
        """Pages of each request in the order of its block table."""
        self.lengths: dict[str, int] = {}
        self.results: dict[str, int] = {}
        """Digest of the logits of each request's last invocation, where there are any."""
        self.thread, self.operation_name = "w0", None
        self._seq, self._invocations, self._nodes = 0, 0, max(node.node for node in nodes)

    def _place(self) -> int:
        self._seq += 1
        return self._seq

    # -- events ----------------------------------------------------------------------------

    def event(self, kind: str, request: str | None = None, pages: Any = (), **fields: Any) -> int:
        seq = self._place()
        values: dict[str, Any] = dict.fromkeys(Event._fields)
        values |= {"thread": self.thread, "operation": self.operation_name, "t_s": seq / 1000}
        extras = {name: fields.pop(name) for name in EVENT_EXTRAS if name in fields}
        digest = extras.pop("digest", None)
        values |= {**fields, "seq": seq, "kind": kind, "request_id": request, "digest": digest}
        event = Event(**values | {"pages": tuple(pages), "extras": extras})
        self.items.append((seq, event))
        self.state.step(event)
        return seq

    @contextmanager
    def within(
        self, operation: str | None = None, request: str | None = None, thread: str | None = None
    ) -> Iterator[None]:
        """Assign the events inside to an operation or to another thread."""
        before = self.operation_name, self.thread
        self.operation_name, self.thread = operation, thread or self.thread
        try:
            yield
            if operation is not None:
                self.event("operation", request)
        finally:
            self.operation_name, self.thread = before

    def submit(self, request: str, prompt: Iterable[int]) -> int:
        self.prompts[request], self.answers[request] = tuple(prompt), []
        self.lengths[request] = 0
        return self.event("submitted", request, tokens=self.prompts[request])

    def token(self, request: str, *tokens: int) -> int:
        for token in tokens:
            kind = "token" if self.answers[request] else "first_token"
            self.answers[request].append(token)
            seq = self.event(kind, request, value=token)
        return seq

    def chosen(self, request: str, token: int | None, digest: int | None = None) -> int:
        """Choose a token, from logits of its last invocation if no other digest is given."""
        own = self.results.get(request, 0) if digest is None else digest
        return self.event("chosen", request, value=token, digest=own)

    def answered(self, request: str, *tokens: int, count: int = 1) -> int:
        return self.event("answered", request, value=count, tokens=tokens)

    def done(self, request: str, outcome: str = "ok", missing: int | None = None) -> int:
        return self.event("done", request, outcome=outcome, value=missing)

    def acquire(self, request: str | None, *pages: int, **fields: Any) -> int:
        counted = {"free_pages": len(self.state.free - set(pages)), **fields}
        return self.event("acquire", request, pages, **counted)

    def free(self, request: str | None, *pages: int, **fields: Any) -> int:
        counted = {"free_pages": len(self.state.free | set(pages)), **fields}
        return self.event("free", request, pages, **counted)

    def hold(self, request: str, *pages: int) -> int:
        self.pages.setdefault(request, []).extend(pages)
        return self.event("pages_held", request, pages)

    def drop(self, request: str, *pages: int) -> int:
        self.pages[request] = [page for page in self.pages[request] if page not in pages]
        return self.event("pages_dropped", request, pages)

    def allocate(self, request: str, *pages: int) -> int:
        """Acquire pages and hold them."""
        self.acquire(request, *pages)
        return self.hold(request, *pages)

    def copy(self, source: int, target: int, request: str | None = None, **fields: Any) -> int:
        return self.event("copy", request, (source, target), **fields)

    def match(self, request: str, *pages: int, node: int = 0) -> int:
        return self.event("match", request, pages, node=node)

    # -- the trie --------------------------------------------------------------------------

    def create(self, request: str | None, page: int, tokens: Sequence[int], parent: int = 0) -> int:
        """Put a node into the trie; its number is `last_node` then."""
        self._nodes += 1
        return self.event(
            "create", request, (page,), node=self._nodes, parent=parent, tokens=tuple(tokens)
        )

    @property
    def last_node(self) -> int:
        return self._nodes

    def leaf(self, node: int, request: str | None = None) -> int:
        return self.event("leaf_added", request, node=node)

    def no_leaf(self, node: int, request: str | None = None) -> int:
        return self.event("leaf_removed", request, node=node)

    def replace(self, node: int, request: str | None = None) -> int:
        return self.event("node_overwritten", request, self._page_of(node), node=node)

    def unlink(self, node: int, request: str | None = None) -> int:
        return self.event("unlink", request, self._page_of(node), node=node)

    def reference(self, node: int, change: int, request: str | None) -> int:
        before = self.state.references.get(node, 0)
        return self.event(
            "reference", request, node=node, ref_before=before, ref_count=before + change
        )

    def _page_of(self, node: int) -> list[int]:
        found = self.state.nodes.get(node)
        return [] if found is None or found.page is None else [found.page]

    def publish(
        self, request: str, tokens: Sequence[int], pages: Sequence[int], parent: int = 0
    ) -> int:
        """Put pages into the trie one below the other and return the last node."""
        with self.within("publish", request):
            for place, page in enumerate(pages):
                block = tokens[place * self.stride : (place + 1) * self.stride]
                self.create(request, page, block, parent)
                if parent in self.state.leaves:
                    self.no_leaf(parent, request)
                parent = self.last_node
                self.leaf(parent, request)
        return parent

    def evict(self, node: int) -> int:
        """Take a leaf out of the trie and free its page; return the place of the unlinking."""
        parent, (page,) = self.state.nodes[node].parent, self._page_of(node)
        with self.within("evict"):
            seq = self.unlink(node)
            self.no_leaf(node)
            if parent and not self.state.children[parent]:
                self.leaf(parent)
            self.free(None, page)
        return seq

    # -- invocations ---------------------------------------------------------------------------

    def prefill(self, *rows: str | Row | None, finishes: bool = True) -> Invocation:
        """Execute prompts, in chunks if any row has a start; None is a padding row."""
        given = [_row(row) for row in rows]
        chunked = any(row.start is not None for row in given)
        whole = [self._prefill_row(row, chunked) for row in given]
        width = max(len(row.tokens) for row in whole)
        width = -(-width // self.stride) * self.stride
        return self._execute("prefill", whole, width, starts=chunked, finishes=finishes)

    def _prefill_row(self, row: Row, chunked: bool) -> Row:
        request = row.request_id
        if request is None:
            return Row(None, row.tokens or (0,), row.start or 0, row.seq_len or 1, row.table or ())
        prompt = self.prompts.get(request, ())
        start = row.start
        if start is None:
            start = self.lengths.get(request, 0) if chunked else 0
        length = len(prompt) if row.seq_len is None else row.seq_len
        due = prompt[start:length] if chunked else prompt
        self.lengths[request] = min(length, len(prompt)) if chunked else len(prompt)
        tokens, table = row.tokens or due, row.table
        if table is None:
            table = self.pages[request][: -(-(start + len(tokens)) // self.stride)]
        return Row(request, tokens, start, length, table)

    def decode(self, *rows: str | Row | None, blocks: int = 0, finishes: bool = True) -> Invocation:
        """Execute one token of each row; block tables are padded, to at least `blocks`."""
        whole = [self._decode_row(_row(row)) for row in rows]
        return self._execute("decode", whole, 1, starts=True, finishes=finishes, blocks=blocks)

    def _decode_row(self, row: Row) -> Row:
        request = row.request_id
        if request is None:
            return Row(None, row.tokens or (0,), row.start or 0, row.seq_len or 1, row.table or ())
        length = self.lengths.get(request, 0)
        self.lengths[request] = length + 1
        tokens, table = row.tokens, row.table
        if tokens is None:
            tokens = (self.answers[request][length - len(self.prompts[request])],)
        if table is None:
            table = self.pages[request][: length // self.stride + 1]
        start = length if row.start is None else row.start
        return Row(
            request, tokens, start, length + 1 if row.seq_len is None else row.seq_len, table
        )

    def _execute(
        self,
        phase: str,
        rows: list[Row],
        width: int,
        *,
        starts: bool,
        finishes: bool,
        blocks: int = 0,
    ) -> Invocation:
        blocks = max(blocks, 1, *(len(row.table) for row in rows))
        seq = self._place()
        invocation = Invocation(
            invocation_id=self._invocations,
            phase=phase,
            request_ids=[row.request_id for row in rows if row.request_id is not None],
            tokens=np.array([_padded(row.tokens, width, 0) for row in rows], dtype=np.int64),
            seq_lens=np.array([row.seq_len for row in rows], dtype=np.int64),
            starts=np.array([row.start for row in rows], dtype=np.int64) if starts else None,
            tables=np.array([_padded(row.table, blocks, PADDING_PAGE) for row in rows]),
            seq=seq,
            end_seq=-1,
            thread=self.thread,
            t_s=seq / 1000,
        )
        assert not any(row.request_id for row in rows[invocation.real :]), "padding comes last"
        self._invocations += 1
        self.items.append((seq, invocation))
        if finishes:
            self.finish(invocation)
        return invocation

    def finish(self, invocation: Invocation) -> None:
        """End an invocation that was begun with `finishes=False`."""
        invocation.end_seq = self._place()
        self.items.append((invocation.end_seq, None))

    def results_of(self, invocation: Invocation, *tokens: int) -> Invocation:
        """Give an invocation results, by which these tokens are the likeliest."""
        invocation.result_tokens = list(tokens)
        invocation.result_digests = [
            1000 * invocation.invocation_id + row for row in range(invocation.real)
        ]
        self.results |= dict(zip(invocation.request_ids, invocation.result_digests, strict=True))
        return invocation

    # -- the end ---------------------------------------------------------------------------

    def snapshot(self, *, consistent: bool = True, **changes: Any) -> int:
        """Take a snapshot: the cache after the events so far, with `changes` of its state."""
        seq = self.event("snapshot", moment="asked")
        state = replace(self.state.snapshot().state, **changes)
        self.snapshots.append(Snapshot(state, seq=seq, t_s=seq / 1000, consistent=consistent))
        return seq

    def release(self, request: str) -> None:
        """Give back all references and pages of a request; those in the trie stay there."""
        for node, count in list(self.state.balance.get(request, {}).items()):
            if count > 0:
                self.reference(node, -count, request)
        if pages := sorted(self.state.held.get(request, ())):
            self.drop(request, *pages)
            lost = [page for page in pages if self.state.is_leaked(page)]
            if lost:
                self.free(request, *lost)

    def end(self, request: str, outcome: str = "ok") -> int:
        """Give back all that a request has, and end it."""
        self.release(request)
        return self.done(request, outcome)

    def close(self) -> TraceBuilder:
        """End all requests that are under way."""
        for request in sorted(self.state.under_way):
            self.end(request)
        return self

    def check(self, *, close: bool = True, order: Sequence[int] | None = None) -> Findings:
        """Check it, put in the order of its items' indices that is given."""
        if close:
            self.close()
        checker = self.checker()
        for index in range(len(self.items)) if order is None else order:
            checker.put(*self.items[index])
        return checker.finish()

    def checker(self) -> Checker:
        """Return a checker that has its snapshots, and no item yet."""
        checker = Checker(self.first, self.stride, context_length=self.context)
        for snapshot in self.snapshots:
            checker.put_snapshot(snapshot)
        return checker

    def tables(self, trial_id: str = "c") -> dict[str, list[dict[str, Any]]]:
        """Return it as rows of the tables of a run."""
        events, invocations = [], []
        for _, item in self.items:
            if isinstance(item, Event):
                events.append(event_row(item, trial_id))
            elif item is not None:
                invocations.append(invocation_row(item, trial_id))
        snapshots = [snapshot.to_row(trial_id) for snapshot in (self.first, *self.snapshots)]
        return {"events": events, "invocations": invocations, "snapshots": snapshots}


def _row(row: str | Row | None) -> Row:
    return row if isinstance(row, Row) else Row(row)


def _padded(values: Sequence[int], width: int, filler: int) -> list[int]:
    return [*values, *[filler] * (width - len(values))]


def strayed(name: str = "a", other: str = "b") -> TraceBuilder:
    """Return a trace in which a request reads another one's page."""
    story = TraceBuilder()
    for request, first, pages in ((name, 11, (1, 2)), (other, 21, (3, 4))):
        story.submit(request, range(first, first + 6))
        story.allocate(request, *pages)
        story.prefill(request)
        story.token(request, 100)
    story.decode(Row(name, table=(3, 2)), other)
    story.token(name, 101)
    story.token(other, 101)
    return story
