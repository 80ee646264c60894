"""A trial as a Perfetto trace: https://perfetto.dev/docs/reference/synthetic-track-event.

Tracks, from top to bottom: findings, counters of pages by state, a track for each worker with its
invocations, one for each request, and one for each page with what owned it. A slice of a page has
the name of its owner, by which Perfetto's viewer colours it.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackDescriptor, TrackEvent
from perfetto.trace_builder.proto_builder import TraceProtoBuilder

from analysis.core.wording import finding_name
from analysis.diagnosis.pages import OWNED, owned_spans
from analysis.runs.store import Run
from analysis.snapshots.snapshot import STATES

_Span = tuple[str, int, int, Mapping[str, Any]]
"""Name, begin and end in ns, and further facts."""
_Owned = list[tuple[int, str, str, int, int]]
_SEQUENCE = 1
_HIDDEN = frozenset(["snapshot", "token", "first_token", "submitted", "done", "operation"])
"""Kinds of events without an instant of their own: slices and counters show them."""


def perfetto_trace(run: Run, trial_id: str) -> bytes:
    """Return a trial of a run as the bytes of a `.pftrace` file.

    Times are nanoseconds since the engine started. Needs the recorded events of the trial.
    """
    (trial,) = run.trials[run.trials["trial_id"] == trial_id].to_dict("records")
    requests, invocations, events, findings = (
        frame[frame["trial_id"] == trial_id]
        for frame in (run.requests, run.invocations, run.events, run.findings)
    )
    events = events.sort_values("seq")
    at = dict(zip(events["seq"].astype(int), _ns(events["t_s"]), strict=True))
    trace = _Trace(f"shortfin {trial['release']}, {trial_id}")
    _findings(trace, findings, at)
    owned = owned_spans(events)
    _counters(trace, owned, int(trial["page_count"]), at)
    _invocations(trace, invocations)
    _requests(trace, requests, events)
    _pages(trace, owned, at)
    return trace.serialize()


def _ns(seconds: pd.Series[float]) -> list[int]:
    return (seconds.astype(float) * 1e9).round().astype("int64").tolist()


class _Trace:
    """Tracks in a tree, each with its place among its siblings, and what is on them."""

    def __init__(self, name: str) -> None:
        self._builder = TraceProtoBuilder()
        self._uuids = itertools.count(1)
        self._ranks: dict[int, Iterator[int]] = {}
        self._root = next(self._uuids)
        descriptor = self._packet().track_descriptor
        descriptor.uuid, descriptor.name = self._root, name
        descriptor.child_ordering = TrackDescriptor.EXPLICIT

    def track(self, name: str, parent: int | None = None, *, unit: str = "") -> int:
        """Add a track below the others of its parent; with a unit it is a counter."""
        uuid, parent = next(self._uuids), parent or self._root
        descriptor = self._packet().track_descriptor
        descriptor.uuid, descriptor.parent_uuid, descriptor.name = uuid, parent, name
        descriptor.child_ordering = TrackDescriptor.EXPLICIT
        descriptor.sibling_order_rank = next(self._ranks.setdefault(parent, itertools.count()))
        if unit:
            descriptor.counter.unit_name = unit
        return uuid

    def slices(self, name: str, parent: int, spans: Iterable[_Span]) -> list[int]:
        """Add spans to a new track, and to more of that name where they overlap.

        The viewer shows tracks of one name as one. A span without a length gets a nanosecond.
        """
        tracks, free_at = [self.track(name, parent)], [0]
        for what, begin, end, facts in sorted(spans, key=lambda span: span[1:3]):
            lane = next((n for n, free in enumerate(free_at) if free <= begin), len(tracks))
            if lane == len(tracks):
                tracks.append(self.track(name, parent))
                free_at.append(0)
            free_at[lane] = max(end, begin + 1)
            self._event(tracks[lane], begin, TrackEvent.TYPE_SLICE_BEGIN, what, facts)
            self._event(tracks[lane], free_at[lane], TrackEvent.TYPE_SLICE_END)
        return tracks

    def instant(self, track: int, name: str, at: int, facts: Mapping[str, Any]) -> None:
        self._event(track, at, TrackEvent.TYPE_INSTANT, name, facts)

    def count(self, track: int, at: int, value: int) -> None:
        self._event(track, at, TrackEvent.TYPE_COUNTER).counter_value = value

    def serialize(self) -> bytes:
        serialized: bytes = self._builder.serialize()
        return serialized

    def _packet(self) -> Any:
        packet = self._builder.add_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _event(
        self,
        track: int,
        at: int,
        kind: Any,
        name: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Any:
        packet = self._packet()
        packet.timestamp = at
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        if name:
            event.name = name
        for key, value in (facts or {}).items():
            if _known(value):
                annotation = event.debug_annotations.add()
                annotation.name = key
                if isinstance(value, int):
                    annotation.int_value = value
                else:
                    annotation.string_value = str(value)
        return event


def _known(value: Any) -> bool:
    return isinstance(value, tuple) or bool(pd.notna(value))


def _findings(trace: _Trace, findings: pd.DataFrame, at: Mapping[int, int]) -> None:
    track = trace.track("findings")
    for row in findings[findings["seq"].notna()].sort_values("seq").to_dict("records"):
        shown = ("severity", "message", "request_id", "other_request_id", "page", "stack")
        when = at.get(int(row["seq"]), round(row["t_s"] * 1e9))
        name = finding_name(row["rule"], row["cause"])
        trace.instant(track, name, when, {key: row[key] for key in shown})


def _counters(trace: _Trace, owned: _Owned, page_count: int, at: Mapping[int, int]) -> None:
    """Count pages by state at each event; all are free before their first one."""
    last = max(at, default=0)
    changes = [
        (seq, page, state, change)
        for page, state, _, begin, end in owned
        for seq, change in ((begin, 1), (end, -1))
        if change > 0 or seq < last
    ]
    has, counts = defaultdict[int, Counter[str]](Counter), Counter(free=page_count)
    tracks = {state: trace.track(f"{state} pages", unit="pages") for state in STATES}
    for state, track in tracks.items():
        trace.count(track, 0, counts[state])
    for seq, page, state, change in sorted(changes):
        before = _state(has[page])
        has[page][state] += change
        after = _state(has[page])
        if before != after:
            counts[before] -= 1
            counts[after] += 1
            for name in (before, after):
                trace.count(tracks[name], at.get(seq, 0), counts[name])


def _state(has: Counter[str]) -> str:
    return next((name for name in OWNED if has[name] > 0), "free")


def _invocations(trace: _Trace, invocations: pd.DataFrame) -> None:
    parent = trace.track("invocations")
    spans = defaultdict[str, list[_Span]](list)
    for row in invocations[invocations["t_s"].notna()].sort_values("seq").to_dict("records"):
        facts = {name: row[name] for name in ("request_ids", "seq_lens", "block_tables", "error")}
        name = f"{row['phase']} {row['invocation_id']}"
        spans[row["thread"] or "worker"].append(_span(name, row["t_s"], row["duration_s"], facts))
    for worker, own in spans.items():
        trace.slices(worker, parent, own)


def _span(name: str, began_s: float, lasted_s: float, facts: Mapping[str, Any]) -> _Span:
    begin = round(began_s * 1e9)
    return name, begin, begin + round((lasted_s if pd.notna(lasted_s) else 0.0) * 1e9), facts


def _requests(trace: _Trace, requests: pd.DataFrame, events: pd.DataFrame) -> None:
    parent = trace.track("requests")
    shown = events[events["request_id"].notna() & ~events["kind"].isin(_HIDDEN)]
    about = dict(list(shown.groupby("request_id", sort=False)))
    for row in requests.sort_values("submitted_s", kind="stable").to_dict("records"):
        facts = {name: row[name] for name in ("prompt", "text", "expected_text", "error")}
        name, spans = f"{row['request_id']}: {row['outcome']}", []
        if pd.notna(row["submitted_s"]):
            spans.append(_span(name, row["submitted_s"], row["latency_s"], facts))
        track, *_ = trace.slices(row["request_id"], parent, spans)
        own = about.get(row["request_id"], shown.head(0))
        names = ["seq", "pages", "node", "tokens_hit", "wanted", "operation", "message"]
        about_it = own[names].to_dict("records")
        for kind, when, each in zip(own["kind"], _ns(own["t_s"]), about_it, strict=True):
            trace.instant(track, kind, when, {str(key): value for key, value in each.items()})


def _pages(trace: _Trace, owned: _Owned, at: Mapping[int, int]) -> None:
    """Add a track for each page that a request held, and one for when it was cached or leaked."""
    parent = trace.track("pages")
    last = max(at.values(), default=0)
    spans = defaultdict[tuple[int, str], list[_Span]](list)
    for page, state, owner, begin, end in owned:
        what = "" if state == "live" else ", cached or leaked"
        spans[page, what].append((owner, at.get(begin, 0), at.get(end, last), {"page": page}))
    for (page, what), own in sorted(spans.items()):
        trace.slices(f"page {page}{what}", parent, own)
