"""Histories of pages: who took, held, wrote, cached, evicted and freed each, by its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from analysis.diagnosis.cache import first_snapshot
from analysis.diagnosis.case import Case, value_of
from analysis.diagnosis.journey import Flown, listed
from analysis.snapshots.snapshot import Snapshot

FREE, CACHED, NOBODY = "free", "cached", "nobody"
"""Owners of a page that are no request."""
_NO_REQUEST = (FREE, CACHED, NOBODY)
_BRIEF = 3
"""Most events between a request's letting go of a page and the pool's having it again."""
_WORDS = {
    "acquire": "{who} took it from the pool",
    "pages_held": "{who} held it from then on",
    "pages_dropped": "{who} held it no longer",
    "free": "{who} gave it back to the pool",
    "create": "{who} put it into the trie, as node {node}",
    "unlink": "node {node} of the trie, which had it, was taken out",
    "node_overwritten": "node {node} of the trie, which had it, lost its place to another",
    "evict": "evicted from the trie, for {who}",
    "duplicate": "{who} set it aside as a repeat of a cached one",
    "duplicate_page": "{who} had it twice in its list",
    "nonfinite": "it held NaN or infinity, from slot {value} on, when {who} flew",
    "written_after_free": "it had been written since it was freed",
}
_Event = dict[Any, Any]
"""A row of the table `events`."""
_PAIRS = ({"acquire", "pages_held"}, {"free", "pages_dropped"})
"""Two sides of one step, of which the first to tell is enough."""


@dataclass(frozen=True)
class Entry:
    """One thing that happened to a page."""

    seq: int
    t_s: float | None
    kind: str
    request_id: str | None
    words: str
    until: int
    """Place of its last part among the events, where it was several writes."""


@dataclass(frozen=True)
class Stay:
    """In whose hands a page was from one event to another."""

    begin: int
    end: int
    owners: tuple[str, ...]
    """Requests, or one of `free`, `cached` and `nobody`."""


@dataclass(frozen=True)
class PageHistory:
    """All that happened to one page while its trial was recorded."""

    page: int
    entries: tuple[Entry, ...]
    stays: tuple[Stay, ...]

    def around(self, begin: int, end: int, most: int = 3) -> tuple[Entry, ...]:
        """Return the entries within two places, the last `most` before, and the first after."""
        before = [e for e in self.entries if e.until < begin][-most:]
        within = [e for e in self.entries if e.until >= begin and e.seq <= end]
        after = [e for e in self.entries if e.seq > end][:most]
        return (*before, *within, *after)


@dataclass(frozen=True)
class _Write:
    seq: int
    t_s: float | None
    invocation_id: int
    who: str
    request_id: str | None
    first: int
    last: int


def pages_of(case: Case, flown: Sequence[Flown], also: Iterable[int | None] = ()) -> list[int]:
    """Return the pages of a request: those `also` named, then those it flew with or held."""
    pages = [page for page in also if page is not None]
    for invocation in flown:
        own = invocation.length or invocation.mine.seq_len or 0
        pages += invocation.mine.table[: -(-own // case.stride)]
    held = case.events[
        (case.events["kind"] == "pages_held") & (case.events["request_id"] == case.name)
    ]
    for more in held["pages"]:
        pages += more or ()
    return list(dict.fromkeys(int(page) for page in pages))


def histories_of(case: Case, pages: Sequence[int]) -> tuple[PageHistory, ...]:
    """Return the history of each page in the order given; without events there are only writes."""
    wanted = set(pages)
    events = _events_by_page(case, wanted)
    written: dict[int, list[_Write]] = {page: [] for page in pages}
    for invocation in case.invocations.to_dict("records"):
        for page, write in _writes(invocation, case.stride):
            if page in wanted:
                written[page].append(write)
    first = first_snapshot(case)
    last = int(case.events["seq"].max()) if len(case.events) else 0
    return tuple(
        PageHistory(
            page,
            _merged(_told(events[page], page), written[page]),
            _stays(events[page], page, first, last) if first is not None else (),
        )
        for page in pages
    )


def _events_by_page(case: Case, pages: set[int]) -> dict[int, list[_Event]]:
    """Return the events that concern each page, in order."""
    found: dict[int, list[_Event]] = {page: [] for page in pages}
    told = case.events[case.events["kind"].isin([*_WORDS, "copy"])]
    concerned = told[[bool(pages.intersection(several or ())) for several in told["pages"]]]
    for event in concerned.to_dict("records"):
        for page in pages.intersection(event["pages"]):
            found[page].append(event)
    return found


def _told(events: Sequence[_Event], page: int) -> list[Entry]:
    """Return what its events tell of a page."""
    entries: list[Entry] = []
    for event in events:
        kind, request = str(event["kind"]), value_of(event["request_id"])
        who = request or "somebody"
        if kind == "copy":
            source, target = event["pages"]
            words = f"copied to page {target}" if page == source else f"a copy of page {source}"
        else:
            words = _WORDS[kind].format(
                who=who, node=value_of(event["node"]), value=value_of(event["value"])
            )
        seq = int(event["seq"])
        entry = Entry(seq, float(event["t_s"]), kind, request, words, seq)
        if entries and {entries[-1].kind, kind} in _PAIRS and entries[-1].request_id == request:
            if kind in ("free", "acquire"):
                entries[-1] = entry
            continue
        entries.append(entry)
    return entries


def _writes(invocation: dict[Any, Any], stride: int) -> Iterable[tuple[int, _Write]]:
    """Yield each page that an invocation wrote, with what it wrote: also padding."""
    tables, tokens = invocation["block_tables"], invocation["tokens"]
    if not tables or not tokens or value_of(invocation["seq"]) is None:
        return
    requests, starts = invocation["request_ids"] or (), invocation["start_positions"]
    seq, t_s, number = (
        int(invocation["seq"]),
        value_of(invocation["t_s"]),
        int(invocation["invocation_id"]),
    )
    prefill = invocation["phase"] == "prefill"
    for row, table in enumerate(tables):
        request = requests[row] if row < len(requests) else None
        start = int(starts[row]) if starts else 0
        width = len(tokens[row])
        own = min(width, max(int(invocation["seq_lens"][row]) - start, 0)) if prefill else width
        for block in range(start // stride, (start + width - 1) // stride + 1):
            if block >= len(table):
                break
            first, last = max(start, block * stride), min(start + width, (block + 1) * stride) - 1
            mine = request is not None and first < start + own
            who = str(request) if mine else f"padding of {request}" if request else "padding rows"
            last = min(last, start + own - 1) if mine else last
            yield (
                int(table[block]),
                _Write(seq, t_s, number, who, request if mine else None, first, last),
            )


def _merged(told: list[Entry], written: list[_Write]) -> tuple[Entry, ...]:
    """Return events and writes in order; what one request wrote between two events is one entry."""
    places = [entry.seq for entry in told]
    merged = list(told)

    def between(write: _Write) -> int:
        return sum(place < write.seq for place in places)

    for _, several in groupby(written, between):
        by: dict[str, list[_Write]] = {}
        for write in several:
            by.setdefault(write.who, []).append(write)
        merged += [_entry(who, writes) for who, writes in by.items()]
    return tuple(sorted(merged, key=lambda entry: entry.seq))


def _entry(who: str, writes: list[_Write]) -> Entry:
    first, last = min(w.first for w in writes), max(w.last for w in writes)
    invocations = list(dict.fromkeys(w.invocation_id for w in writes))
    when = (
        f"invocations {invocations[0]} to {invocations[-1]}"
        if len(invocations) > 1
        else f"invocation {invocations[0]}"
    )
    what = f"positions {first} to {last}" if last > first else f"position {first}"
    words = f"{who} wrote {what} ({when})"
    request = writes[0].request_id
    return Entry(writes[0].seq, writes[0].t_s, "write", request, words, writes[-1].seq)


def _stays(events: Sequence[_Event], page: int, first: Snapshot, last: int) -> tuple[Stay, ...]:
    """Return in whose hands a page was, from the first snapshot to the last event.

    A node that became unreachable with an ancestor still counts as cached here.
    """
    free = page in set(first.state.free)
    holders = {r: None for r, pages in first.state.holdings.items() if page in pages}
    nodes = {n.node for n in first.nodes if n.page == page}
    begin, stays = first.seq or 0, list[Stay]()
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
            stays.append(Stay(begin, seq, now))
            begin, now = seq, owners
    stays.append(Stay(begin, max(last, begin), now))
    return tuple(_without_handover(stays))


def _without_handover(stays: list[Stay]) -> list[Stay]:
    """Leave out the moments between the pool and a request's hands, either way."""
    kept: list[Stay] = []
    for stay in stays:
        begin = stay.begin
        if len(kept) > 1 and kept[-1].owners == (NOBODY,):
            taken = kept[-2].owners == (FREE,) and stay.owners[0] not in _NO_REQUEST
            brief = kept[-1].end - kept[-1].begin <= _BRIEF
            given = stay.owners == (FREE,) and kept[-2].owners[0] not in _NO_REQUEST and brief
            if taken or given:
                begin = kept.pop().begin
                kept[-1] = Stay(kept[-1].begin, begin, kept[-1].owners)
        kept.append(Stay(begin, stay.end, stay.owners))
    return kept


def _owners(free: bool, holders: Iterable[str], nodes: Iterable[Any]) -> tuple[str, ...]:
    if free:
        return (FREE,)
    return tuple(holders) or ((CACHED,) if list(nodes) else (NOBODY,))


def owners_in_words(owners: Sequence[str]) -> str:
    """Return in whose hands that is."""
    words = {FREE: "free", CACHED: "in the prefix cache", NOBODY: "in nobody's hands"}
    return words.get(owners[0], f"held by {listed(owners)}")
