"""A request's timeline: its invocations, the requests batched with it, and its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.core.wording import counted, listed, numbered, one_line
from analysis.diagnosis.request_trace import RequestTrace, value_of


@dataclass(frozen=True)
class BatchRow:
    """A row of an invocation, as passed to the device."""

    row: int
    request_id: str | None
    """None: padding."""
    seq_len: int | None
    start: int | None
    """Position of its first token; None if the model has no such argument."""
    table: tuple[int, ...]
    """Its block table, with padding."""
    tokens: int
    """Number of its token ids."""


@dataclass(frozen=True)
class RequestInvocation:
    """An invocation with a row of the request."""

    invocation_id: int
    phase: str
    t_s: float | None
    end_s: float | None
    seq: int | None
    end_seq: int | None
    rows: tuple[BatchRow, ...]
    """All rows, including padding."""
    own: int
    """Index of the request's row."""
    own_length: int | None
    """Tokens of the request at that time: the length its row should attend to."""
    token_index: int | None
    """Index of the answer's token that it computed, from 0."""
    top: tuple[tuple[int, float], ...]
    """Most likely next tokens of the row, with log probabilities; () if not recorded."""
    error: str | None

    @property
    def own_row(self) -> BatchRow:
        """The request's row."""
        return self.rows[self.own]

    @property
    def others(self) -> tuple[str, ...]:
        """Requests of the other rows."""
        return tuple(r.request_id for r in self.rows if r.request_id and r is not self.own_row)


@dataclass(frozen=True)
class BatchPeer:
    """Another request that shared invocations with it."""

    request_id: str
    outcome: str | None
    invocations: int
    """Number of shared invocations."""
    pages: tuple[int, ...]
    """Pages in both block tables of a shared invocation, within both requests' lengths."""


@dataclass(frozen=True)
class Moment:
    """An entry of the timeline."""

    t_s: float | None
    seq: int | None
    kind: str
    words: str


_EVENTS = {
    "submitted": "submitted, {tokens} tokens",
    "match": "prefix lookup: {hit} tokens found{on}",
    "acquire": "took {pages} from the pool{left}",
    "alloc_failed": "allocation failed: {wanted}, {free} free",
    "evict": "{pages} evicted to make room",
    "failed": "{operation} failed: {message}",
    "free": "returned {pages} to the pool{left}",
    "pages_dropped": "dropped {pages}",
    "duplicate_page": "had {pages} more than once in its list",
    "first_token": "first token",
    "stall": "timed out; its state in the engine: {state}",
    "worker_died": "{message}",
    "done": "ended; outcome for the engine: {outcome}",
}
"""Event kinds in a timeline, with their text."""


def invocations_of(trace: RequestTrace) -> tuple[RequestInvocation, ...]:
    """Return the request's invocations in order; () if not recorded."""
    prompt = len(trace.request["prompt_tokens"] or ()) or _prompt_length(trace)
    found: list[RequestInvocation] = []
    for record in trace.invocations.to_dict("records"):
        if trace.name in (record["request_ids"] or ()):
            # A prefill computes the first token, every decode one more.
            phases = {f.phase for f in found}
            index = sum(f.phase == "decode" for f in found) + ("prefill" in phases)
            found.append(_invocation(record, trace.name, prompt, index))
    return tuple(found)


def peers_of(
    trace: RequestTrace, invocations: Sequence[RequestInvocation]
) -> tuple[BatchPeer, ...]:
    """Return the requests that shared invocations with the request, most frequent first."""
    shared: dict[str, list[set[int]]] = {}
    for invocation in invocations:
        own = set(_used(invocation.own_row, trace.page_tokens))
        for row in invocation.rows:
            if row.request_id and row is not invocation.own_row:
                common = own & set(_used(row, trace.page_tokens))
                shared.setdefault(row.request_id, []).append(common)
    outcomes = dict(zip(trace.requests["request_id"], trace.requests["outcome"], strict=True))
    return tuple(
        BatchPeer(name, outcomes.get(name), len(pages), tuple(sorted(set().union(*pages))))
        for name, pages in sorted(shared.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def timeline_of(
    trace: RequestTrace, invocations: Sequence[RequestInvocation]
) -> tuple[Moment, ...]:
    """Return the request's events in order, without ordinary decodes and tokens."""
    events = trace.events
    own = events[(events["request_id"] == trace.name) | (events["kind"] == "worker_died")]
    moments = [
        Moment(time_of(event), int(event["seq"]), str(event["kind"]), _words(event))
        for event in own.to_dict("records")
        if event["kind"] in _EVENTS
    ]
    for invocation in invocations:
        last = invocation is invocations[-1]
        if invocation.phase == "prefill" or last or invocation.error:
            words = f"invocation {invocation.invocation_id}"
            words += " (the last)" if last and len(invocations) > 1 else ""
            words += f": a {invocation.phase}"
            words += f" with {listed(invocation.others)}" if invocation.others else ", alone"
            words += f", failed: {invocation.error}" if invocation.error else ""
            moments.append(Moment(invocation.t_s, invocation.seq, "invocation", words))
    if not moments:
        moments = _from_the_answer(trace)
    return tuple(sorted(moments, key=lambda m: (m.seq if m.seq is not None else -1, m.t_s or 0)))


def time_of(event: Mapping[Any, Any]) -> float:
    """Return the time of an event, in seconds since the engine started."""
    return float(event["t_s"])


def wanted_of(event: Mapping[Any, Any]) -> str:
    """Return how many pages a failed allocation needed, in words."""
    wanted = value_of(event["wanted"])
    return "pages needed" if wanted is None else f"{counted(int(wanted), 'page')} needed"


def state_of(event: Mapping[Any, Any]) -> str:
    """Return the state of a request that timed out, such as "pending decode"."""
    stall = value_of(event["stall"]) or {}
    return " ".join(filter(None, (stall.get("state") or "unknown", stall.get("phase"))))


def message_of(event: Mapping[Any, Any], most: int = 300) -> str:
    """Return the message of an event on one line."""
    return one_line(value_of(event["message"]) or "", most)


def _invocation(
    record: Mapping[Any, Any], name: str, prompt: int | None, index: int
) -> RequestInvocation:
    requests, own = record["request_ids"], record["request_ids"].index(name)
    columns = ("seq_lens", "start_positions", "block_tables", "tokens")
    seq_lens, starts, tables, tokens = (record[column] or () for column in columns)
    begin, duration = value_of(record["t_s"]), value_of(record["duration_s"])
    top_tokens, top_logs = (
        _at(record[column] or (), own) or () for column in ("top_tokens", "top_logprobs")
    )
    prefill = record["phase"] == "prefill"
    return RequestInvocation(
        invocation_id=int(record["invocation_id"]),
        phase=str(record["phase"]),
        t_s=begin,
        end_s=None if begin is None or duration is None else begin + duration,
        seq=value_of(record["seq"]),
        end_seq=value_of(record["end_seq"]),
        rows=tuple(
            BatchRow(
                row=row,
                request_id=_at(requests, row),
                seq_len=_at(seq_lens, row),
                start=_at(starts, row),
                table=_at(tables, row) or (),
                tokens=len(_at(tokens, row) or ()),
            )
            for row in range(max(len(requests), len(seq_lens)))
        ),
        own=own,
        own_length=prompt if prefill or prompt is None else prompt + index,
        token_index=0 if prefill else index,
        top=tuple(zip(top_tokens, top_logs, strict=True)),
        error=value_of(record["error"]),
    )


def _prompt_length(trace: RequestTrace) -> int | None:
    submitted = trace.events_of("submitted").to_dict("records")
    return _tokens_of(submitted[0]) or None if submitted else None


def _tokens_of(event: Mapping[Any, Any]) -> int:
    """Return the number of tokens of a submitted prompt."""
    return len(event["tokens"] or ())


def _used(row: BatchRow, page_tokens: int) -> tuple[int, ...]:
    """Return the pages of a row's table that its own tokens use."""
    if row.start is not None:
        return row.table[: row.start // page_tokens + 1] if row.tokens == 1 else row.table
    return row.table[: -(-(row.seq_len or 0) // page_tokens)]


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _words(event: Mapping[Any, Any]) -> str:
    kind, free = event["kind"], value_of(event["free_pages"])
    pages = numbered("page", event["pages"] or (), most=12)
    return _EVENTS[kind].format(
        pages=pages,
        on=f", on {pages}" if event["pages"] else "",
        free=free,
        left="" if free is None else f"; {free} free then",
        hit=value_of(event["tokens_hit"]) or 0,
        operation=event["operation"],
        message=message_of(event),
        tokens=_tokens_of(event) if kind == "submitted" else 0,
        wanted=wanted_of(event) if kind == "alloc_failed" else "",
        state=state_of(event) if kind == "stall" else "",
        outcome=event["outcome"],
    )


def _from_the_answer(trace: RequestTrace) -> list[Moment]:
    """Return the moments recorded in the request's row of `requests`."""
    row, submitted = trace.request, trace.request["submitted_s"]
    if submitted is None:
        return []
    moments = [Moment(submitted, None, "submitted", "submitted")]
    if row["ttft_s"] is not None:
        moments.append(Moment(submitted + row["ttft_s"], None, "first_token", "first token"))
    if row["latency_s"] is not None:
        words = f"ended: {trace.outcome}"
        moments.append(Moment(submitted + row["latency_s"], None, "done", words))
    return moments
