"""A request's way through the engine: its invocations, who shared them, its moments in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.diagnosis.case import Case, value_of


@dataclass(frozen=True)
class Row:
    """A row of an invocation, as the device got it."""

    row: int
    request_id: str | None
    """None: padding."""
    seq_len: int | None
    start: int | None
    """Position of its first token; None where the model was not told."""
    table: tuple[int, ...]
    """Its block table, padded."""
    tokens: int
    """How many tokens it brought."""


@dataclass(frozen=True)
class Flown:
    """An invocation of the request."""

    invocation_id: int
    phase: str
    t_s: float | None
    landed_s: float | None
    seq: int | None
    end_seq: int | None
    rows: tuple[Row, ...]
    """All rows, padding too."""
    own: int
    """Which of them is the request's."""
    length: int | None
    """Tokens that the request itself had then: what its row ought to attend to."""
    place: int | None
    """Which token of the answer it gave, from 0."""
    top: tuple[tuple[int, float], ...]
    """Likeliest next tokens of its row and their logarithmic probabilities; none recorded: ()."""
    error: str | None

    @property
    def mine(self) -> Row:
        """The request's own row."""
        return self.rows[self.own]

    @property
    def others(self) -> tuple[str, ...]:
        """Requests of the other rows."""
        return tuple(r.request_id for r in self.rows if r.request_id and r is not self.mine)


@dataclass(frozen=True)
class Fellow:
    """Another request that flew with it."""

    request_id: str
    outcome: str | None
    invocations: int
    """How many invocations they shared."""
    pages: tuple[int, ...]
    """Pages that the block tables of both had in one invocation, within their own lengths."""
    submitted_s: float | None
    ended_s: float | None


@dataclass(frozen=True)
class Moment:
    """Something that happened to the request."""

    t_s: float | None
    seq: int | None
    kind: str
    words: str


def invocations_of(case: Case) -> tuple[Flown, ...]:
    """Return the request's invocations in order; none where they were not recorded."""
    prompt = len(case.request["prompt_tokens"] or ()) or _prompt_length(case)
    flown: list[Flown] = []
    for invocation in case.invocations.to_dict("records"):
        requests = invocation["request_ids"] or ()
        if case.name in requests:
            flown.append(_flown(invocation, requests, case.name, prompt, _given(flown)))
    return tuple(flown)


def fellows_of(case: Case, flown: Sequence[Flown]) -> tuple[Fellow, ...]:
    """Return the requests that shared invocations with it, those that did most often first."""
    together: dict[str, int] = {}
    pages: dict[str, set[int]] = {}
    for invocation in flown:
        mine = set(_used(invocation.mine, case.stride))
        for row in invocation.rows:
            if row.request_id and row is not invocation.mine:
                together[row.request_id] = together.get(row.request_id, 0) + 1
                common = mine & set(_used(row, case.stride))
                pages.setdefault(row.request_id, set()).update(common)
    rows = case.requests.set_index("request_id")
    fellows = []
    for request, count in sorted(together.items(), key=lambda item: (-item[1], item[0])):
        submitted, ended = span_of(case, request)
        outcome = str(rows.loc[request, "outcome"]) if request in rows.index else None
        shared = tuple(sorted(pages[request]))
        fellows.append(Fellow(request, outcome, count, shared, submitted, ended))
    return tuple(fellows)


def span_of(case: Case, request_id: str) -> tuple[float | None, float | None]:
    """Return when a request was sent and when it ended, in seconds since the engine started."""
    rows = case.requests[case.requests["request_id"] == request_id]
    if rows.empty:
        return None, None
    submitted, latency = (value_of(rows.iloc[0][name]) for name in ("submitted_s", "latency_s"))
    return submitted, None if submitted is None or latency is None else submitted + latency


def moments_of(case: Case, flown: Sequence[Flown]) -> tuple[Moment, ...]:
    """Return what happened to the request but for its ordinary invocations and tokens, in order."""
    moments = []
    events = case.events
    own = events[(events["request_id"] == case.name) | (events["kind"] == "worker_died")]
    for event in own.to_dict("records"):
        if words := _words(event, case):
            seconds = float(event["t_s"])
            moments.append(Moment(seconds, int(event["seq"]), str(event["kind"]), words))
    for invocation in flown:
        if invocation.phase == "prefill" or invocation is flown[-1] or invocation.error:
            with_whom = f" with {listed(invocation.others)}" if invocation.others else ", alone"
            last = ", its last" if invocation is flown[-1] and len(flown) > 1 else ""
            words = f"invocation {invocation.invocation_id}{last}: a {invocation.phase}{with_whom}"
            words += f", which failed: {invocation.error}" if invocation.error else ""
            moments.append(Moment(invocation.t_s, invocation.seq, "invocation", words))
    if not moments:
        moments = _from_the_answer(case)
    return tuple(sorted(moments, key=lambda m: (m.seq if m.seq is not None else -1, m.t_s or 0)))


def listed(names: Iterable[Any], most: int = 6) -> str:
    """Return names as `a, b and c`."""
    all_names = [str(name) for name in names]
    if len(all_names) > most:
        return f"{', '.join(all_names[:most])} and {len(all_names) - most} more"
    return " and ".join(part for part in (", ".join(all_names[:-1]), *all_names[-1:]) if part)


def pages_in_words(pages: Sequence[int]) -> str:
    """Return `page 3` or `pages 3, 4 and 5`."""
    return f"page{'s' if len(pages) != 1 else ''} {listed(pages, 12)}"


def _flown(
    invocation: dict[Any, Any], requests: Sequence[str], name: str, prompt: int | None, given: int
) -> Flown:
    seq_lens, starts = invocation["seq_lens"] or (), invocation["start_positions"] or ()
    tables, tokens = invocation["block_tables"] or (), invocation["tokens"] or ()
    count = max(len(requests), len(seq_lens))
    rows = tuple(
        Row(
            row=row,
            request_id=requests[row] if row < len(requests) else None,
            seq_len=_at(seq_lens, row),
            start=_at(starts, row),
            table=_at(tables, row) or (),
            tokens=len(_at(tokens, row) or ()),
        )
        for row in range(count)
    )
    own = requests.index(name)
    begun, duration = value_of(invocation["t_s"]), value_of(invocation["duration_s"])
    top_tokens, top_logs = (
        _at(invocation[n] or (), own) or () for n in ("top_tokens", "top_logprobs")
    )
    chunk = invocation["phase"] == "prefill"
    length = prompt if chunk else None if prompt is None else prompt + given
    return Flown(
        invocation_id=int(invocation["invocation_id"]),
        phase=str(invocation["phase"]),
        t_s=begun,
        landed_s=None if begun is None or duration is None else begun + duration,
        seq=value_of(invocation["seq"]),
        end_seq=value_of(invocation["end_seq"]),
        rows=rows,
        own=own,
        length=length,
        place=0 if chunk else given,
        top=tuple(zip(top_tokens, top_logs, strict=True)),
        error=value_of(invocation["error"]),
    )


def _given(flown: Sequence[Flown]) -> int:
    """Return how many tokens of the answer these invocations gave: a prefill the first one."""
    return sum(f.phase == "decode" for f in flown) + any(f.phase == "prefill" for f in flown)


def _prompt_length(case: Case) -> int | None:
    submitted = case.events[
        (case.events["kind"] == "submitted") & (case.events["request_id"] == case.name)
    ]
    tokens = None if submitted.empty else submitted["tokens"].iloc[0]
    return len(tokens) if tokens else None


def _used(row: Row, stride: int) -> tuple[int, ...]:
    """Return the pages of a row's table that its own tokens reach into."""
    if row.start is not None:
        return row.table[: row.start // stride + 1] if row.tokens == 1 else row.table
    return row.table[: -(-(row.seq_len or 0) // stride)]


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def _words(event: dict[Any, Any], case: Case) -> str:
    """Return what an event of the request's own was, "" if it is not told one by one."""
    pages, message = event["pages"] or (), value_of(event["message"]) or ""
    left = value_of(event["free_pages"])
    free = "" if left is None else f"; {left} free then"
    match event["kind"]:
        case "submitted":
            return f"sent in, {len(event['tokens'] or ())} tokens long"
        case "match":
            hit = value_of(event["tokens_hit"]) or 0
            found = f", on {pages_in_words(pages)}" if pages else ""
            return f"looked up in the trie: {hit} tokens found{found}"
        case "acquire":
            return f"took {pages_in_words(pages)} from the pool{free}"
        case "alloc_failed":
            return f"the pool had too few pages: {wanted_in_words(event)}, {left} free"
        case "evict":
            return f"{pages_in_words(pages)} evicted to make room"
        case "failed":
            return f"{event['operation']} failed: {one_line(message)}"
        case "free":
            return f"gave {pages_in_words(pages)} back to the pool{free}"
        case "pages_dropped":
            return f"held {pages_in_words(pages)} no longer"
        case "duplicate_page":
            return f"had {pages_in_words(pages)} more than once in its list"
        case "first_token":
            return "first token"
        case "stall":
            return f"given up; the engine had it as {stalled(event['stall'])}"
        case "worker_died":
            return one_line(message)
        case "done":
            return f"ended; for the engine: {event['outcome']}"
    return ""


def wanted_in_words(event: Mapping[Any, Any]) -> str:
    """Return how many pages an event wanted."""
    wanted = value_of(event["wanted"])
    return "pages were wanted" if wanted is None else f"{wanted} pages were wanted"


def stalled(stall: Mapping[str, Any] | None) -> str:
    """Return where a request was that was given up, such as "pending decode"."""
    stall = stall or {}
    return " ".join(filter(None, (stall.get("state") or "unknown", stall.get("phase"))))


def _from_the_answer(case: Case) -> list[Moment]:
    """Return the moments that the table `requests` tells."""
    submitted, ended = span_of(case, case.name)
    first = case.request["ttft_s"]
    moments = [] if submitted is None else [Moment(submitted, None, "submitted", "sent in")]
    if submitted is not None and first is not None:
        moments.append(Moment(submitted + first, None, "first_token", "first token"))
    if ended is not None:
        moments.append(Moment(ended, None, "done", f"ended: {case.outcome}"))
    return moments


def one_line(text: str, most: int = 300) -> str:
    """Return a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
