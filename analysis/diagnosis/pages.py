"""Histories of pages: every change of owner and every write."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from analysis.core.wording import listed
from analysis.diagnosis.cache import first_snapshot
from analysis.diagnosis.request_trace import RequestTrace, value_of
from analysis.diagnosis.timeline import RequestInvocation, time_of
from analysis.plots.page_lifetimes import held_spans
from analysis.recording.replay import cached_or_leaked
from analysis.snapshots.snapshot import Snapshot

FREE, CACHED, UNOWNED = "free", "cached", "unowned"
"""Owners of a page that are not requests."""
OWNED = ("live", "cached", "leaked")
"""States of `owned_spans`, from the strongest: a page that is cached and held is live."""
_NO_REQUEST = (FREE, CACHED, UNOWNED)
_BRIEF = 3
"""Most events between a request's drop of a page and the page's return to the pool."""
_WORDS = {
    "acquire": "{request} took it from the pool",
    "pages_held": "{request} held it",
    "pages_dropped": "{request} dropped it",
    "free": "{request} returned it to the pool",
    "create": "{request} published it in the trie as node {node}",
    "unlink": "its node {node} was removed from the trie",
    "node_overwritten": "its node {node} was overwritten by another node",
    "evict": "evicted from the trie for {request}",
    "duplicate": "{request} listed it as a duplicate of a cached page",
    "duplicate_page": "{request} had it twice in its list",
    "nonfinite": "it held NaN or infinity, from slot {value} on, in an invocation of {request}",
    "written_after_free": "it was written after it was freed",
}
_Event = dict[Any, Any]
"""A row of the table `events`."""
_PAIRS = ({"acquire", "pages_held"}, {"free", "pages_dropped"})
"""Pairs of events of one step: the history has only the first."""


@dataclass(frozen=True)
class Entry:
    """One event of a page, or several writes of one request."""

    seq: int
    t_s: float | None
    kind: str
    request_id: str | None
    words: str
    until: int
    """The last event of the entry."""


@dataclass(frozen=True)
class OwnershipInterval:
    """The owners of a page between two events."""

    begin: int
    end: int
    owners: tuple[str, ...]
    """Requests, or one of `free`, `cached` and `unowned`."""


@dataclass(frozen=True)
class PageHistory:
    """The events and owners of one page during the recording."""

    page: int
    entries: tuple[Entry, ...]
    owners: tuple[OwnershipInterval, ...]

    def around(self, begin: int, end: int, most: int = 3) -> tuple[Entry, ...]:
        """Return the entries between two events, the last `most` before and the first after."""
        before = [e for e in self.entries if e.until < begin][-most:]
        within = [e for e in self.entries if e.until >= begin and e.seq <= end]
        after = [e for e in self.entries if e.seq > end][:most]
        return (*before, *within, *after)


@dataclass(frozen=True)
class _Write:
    seq: int
    t_s: float | None
    invocation_id: int
    writer: str
    request_id: str | None
    first: int
    last: int


def pages_of(
    trace: RequestTrace, invocations: Sequence[RequestInvocation], also: Iterable[int | None] = ()
) -> list[int]:
    """Return the pages `also`, then those of the request's block tables, then those it held."""
    pages = [page for page in also if page is not None]
    for invocation in invocations:
        own = invocation.own_length or invocation.own_row.seq_len or 0
        pages += invocation.own_row.table[: -(-own // trace.page_tokens)]
    for more in trace.events_of("pages_held")["pages"]:
        pages += more or ()
    return list(dict.fromkeys(int(page) for page in pages))


def histories_of(trace: RequestTrace, pages: Sequence[int]) -> tuple[PageHistory, ...]:
    """Return the history of each page, in the given order; only writes if there are no events."""
    wanted = set(pages)
    events = _events_by_page(trace, wanted)
    written: dict[int, list[_Write]] = {page: [] for page in pages}
    for invocation in trace.invocations.to_dict("records"):
        for page, write in _writes(invocation, trace.page_tokens):
            if page in wanted:
                written[page].append(write)
    first = first_snapshot(trace)
    return tuple(
        PageHistory(
            page,
            _merged(_entries(events[page], page), written[page]),
            _intervals(events[page], page, first, trace.last_seq) if first is not None else (),
        )
        for page in pages
    )


def _events_by_page(trace: RequestTrace, pages: set[int]) -> dict[int, list[_Event]]:
    """Return the events of each page, in order."""
    found: dict[int, list[_Event]] = {page: [] for page in pages}
    named = trace.events[trace.events["kind"].isin([*_WORDS, "copy"])]
    concerned = named[[bool(pages.intersection(several or ())) for several in named["pages"]]]
    for event in concerned.to_dict("records"):
        for page in pages.intersection(event["pages"]):
            found[page].append(event)
    return found


def _entries(events: Sequence[_Event], page: int) -> list[Entry]:
    """Return an entry for each event of a page."""
    entries: list[Entry] = []
    for event in events:
        kind, request = str(event["kind"]), value_of(event["request_id"])
        owner = request or "an unknown request"
        if kind == "copy":
            source, target = event["pages"]
            words = f"copied to page {target}" if page == source else f"a copy of page {source}"
        else:
            words = _WORDS[kind].format(
                request=owner, node=value_of(event["node"]), value=value_of(event["value"])
            )
        seq = int(event["seq"])
        entry = Entry(seq, time_of(event), kind, request, words, seq)
        if entries and {entries[-1].kind, kind} in _PAIRS and entries[-1].request_id == request:
            if kind in ("free", "acquire"):
                entries[-1] = entry
            continue
        entries.append(entry)
    return entries


def _writes(invocation: dict[Any, Any], page_tokens: int) -> Iterable[tuple[int, _Write]]:
    """Yield each page that an invocation wrote, with the write; includes padding."""
    tables, tokens = invocation["block_tables"], invocation["tokens"]
    if not tables or not tokens or value_of(invocation["seq"]) is None:
        return
    requests, starts = invocation["request_ids"] or (), invocation["start_positions"]
    seq, number = int(invocation["seq"]), int(invocation["invocation_id"])
    t_s, prefill = value_of(invocation["t_s"]), invocation["phase"] == "prefill"
    for row, (table, ids) in enumerate(zip(tables, tokens, strict=False)):
        request = requests[row] if row < len(requests) else None
        start = int(starts[row]) if starts else 0
        end = start + len(ids)
        own_end = min(end, max(int(invocation["seq_lens"][row]), start)) if prefill else end
        for block in range(start // page_tokens, min((end - 1) // page_tokens + 1, len(table))):
            first = max(start, block * page_tokens)
            last = min(end, (block + 1) * page_tokens) - 1
            own = request is not None and first < own_end
            writer = str(request) if own else f"padding of {request}" if request else "padding rows"
            last = min(last, own_end - 1) if own else last
            write = _Write(seq, t_s, number, writer, request if own else None, first, last)
            yield int(table[block]), write


def _merged(entries: list[Entry], written: list[_Write]) -> tuple[Entry, ...]:
    """Return events and writes in order; a request's writes between two events are one entry."""
    places = [entry.seq for entry in entries]
    merged = list(entries)
    for _, several in groupby(written, lambda write: bisect_left(places, write.seq)):
        by: dict[str, list[_Write]] = {}
        for write in several:
            by.setdefault(write.writer, []).append(write)
        merged += [_entry(writer, writes) for writer, writes in by.items()]
    return tuple(sorted(merged, key=lambda entry: entry.seq))


def _entry(writer: str, writes: list[_Write]) -> Entry:
    first, last = min(w.first for w in writes), max(w.last for w in writes)
    invocations = list(dict.fromkeys(w.invocation_id for w in writes))
    when = f"invocation {invocations[0]}"
    if len(invocations) > 1:
        when = f"invocations {invocations[0]} to {invocations[-1]}"
    what = f"positions {first} to {last}" if last > first else f"position {first}"
    words = f"{writer} wrote {what} ({when})"
    request = writes[0].request_id
    return Entry(writes[0].seq, writes[0].t_s, "write", request, words, writes[-1].seq)


def _intervals(
    events: Sequence[_Event], page: int, first: Snapshot, last: int
) -> tuple[OwnershipInterval, ...]:
    """Return the owners of a page from the first snapshot to the last event.

    A node that became unreachable because of an ancestor still counts as cached.
    """
    free = page in set(first.state.free)
    holders = {r: None for r, pages in first.state.holdings.items() if page in pages}
    nodes = {n.node for n in first.nodes if n.page == page}
    begin, intervals = first.seq or 0, list[OwnershipInterval]()
    now = _owners(free, holders, nodes)
    for event in events:
        seq = int(event["seq"])
        if seq <= (first.seq or 0):
            continue
        match event["kind"]:
            case "acquire" | "free":
                free = event["kind"] == "free"
            case "pages_held":
                holders[str(event["request_id"])] = None
            case "pages_dropped":
                holders.pop(str(event["request_id"]), None)
            case "create":
                nodes.add(value_of(event["node"]))
            case "unlink" | "node_overwritten":
                nodes.discard(value_of(event["node"]))
        owners = _owners(free, holders, nodes)
        if owners != now:
            intervals.append(OwnershipInterval(begin, seq, now))
            begin, now = seq, owners
    intervals.append(OwnershipInterval(begin, max(last, begin), now))
    return tuple(_without_handover(intervals))


def _without_handover(intervals: list[OwnershipInterval]) -> list[OwnershipInterval]:
    """Remove the short unowned intervals between the pool and a request."""
    kept: list[OwnershipInterval] = []
    for interval in intervals:
        begin, owners = interval.begin, interval.owners
        if len(kept) > 1 and kept[-1].owners == (UNOWNED,):
            taken = kept[-2].owners == (FREE,) and owners[0] not in _NO_REQUEST
            brief = kept[-1].end - kept[-1].begin <= _BRIEF
            given = owners == (FREE,) and kept[-2].owners[0] not in _NO_REQUEST and brief
            if taken or given:
                begin = kept.pop().begin
                kept[-1] = OwnershipInterval(kept[-1].begin, begin, kept[-1].owners)
        kept.append(OwnershipInterval(begin, interval.end, owners))
    return kept


def _owners(free: bool, holders: Iterable[str], nodes: Iterable[Any]) -> tuple[str, ...]:
    if free:
        return (FREE,)
    return tuple(holders) or ((CACHED,) if list(nodes) else (UNOWNED,))


def owner_in_words(owners: Sequence[str]) -> str:
    """Return the owners of a page, such as "held by r0003"."""
    words = {FREE: "free", CACHED: "in the prefix cache", UNOWNED: "owned by no request"}
    return words.get(owners[0], f"held by {listed(owners)}")


def owned_spans(events: pd.DataFrame) -> list[tuple[int, str, str, int, int]]:
    """Return page, state, owner, and first and last `seq` of each time that a page was not free.

    The state is *live*, with the request that held it as owner, or *cached* or *leaked*. A page may
    be live and cached at once, and held by several requests.
    """
    held: list[Any] = list(held_spans(events).itertuples())
    others: list[Any] = list(cached_or_leaked(events).itertuples())
    return [(one.page, "live", one.owner, one.begin, one.end) for one in held] + [
        (one.page, one.state, one.state, one.begin, one.end) for one in others
    ]
