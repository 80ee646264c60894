"""The cache before and after a request, recorded or replayed from events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.diagnosis.request_trace import RequestTrace
from analysis.recording.replay import Replay
from analysis.snapshots.snapshot import Snapshot

_SAMPLES = 80


@dataclass(frozen=True)
class Caches:
    """The cache before and after a request."""

    before: Snapshot | None
    after: Snapshot | None
    how: str
    """Whether it was recorded or replayed, or why it is missing, in a sentence."""


@dataclass(frozen=True)
class Pool:
    """Number of pages in each state at one event."""

    seq: int
    free: int
    live: int
    cached: int
    leaked: int


def caches_of(trace: RequestTrace) -> Caches:
    """Return the cache before the request was submitted and after it ended."""
    if trace.events.empty:
        return Caches(None, None, "No events were recorded, so the cache is unknown.")
    if trace.snapshots["seq"].notna().sum() == 0:
        return Caches(None, None, "No snapshot was recorded, so the cache cannot be replayed.")
    sent, ended = trace.seq_of("submitted"), trace.seq_of("done")
    taken = {m: _taken(trace, m) for m in ("before", "after")}
    before = taken["before"] or cache_at(trace, None if sent is None else sent - 1)
    after = taken["after"] or cache_at(trace, ended)
    missing = [word for word, found in (("submit", before), ("end", after)) if found is None]
    if missing:
        return Caches(before, after, f"No snapshot at the request's {' and '.join(missing)}.")
    how = "As recorded." if all(taken.values()) else "Replayed from the recorded events."
    return Caches(before, after, how)


def cache_at(trace: RequestTrace, seq: int | None) -> Snapshot | None:
    """Return the cache after the event `seq`, replayed from the last snapshot before it."""
    placed = trace.snapshots[trace.snapshots["seq"].notna()]
    if seq is None or placed.empty:
        return None
    earlier = placed[placed["seq"] <= seq]
    sound = earlier[earlier["consistent"].fillna(value=True).astype(bool)]
    rows = sound if len(sound) else earlier
    if rows.empty:
        return None
    start = _snapshot(rows, -1)
    return Replay(start).apply(trace.events, until=seq).snapshot()


def pool_until(trace: RequestTrace, end: int) -> tuple[Pool, ...]:
    """Return the pool at up to 80 events, from the first snapshot on."""
    start = first_snapshot(trace)
    if start is None or start.seq is None or trace.events.empty:
        return ()
    begin = start.seq
    changed = trace.events[(trace.events["seq"] > begin) & (trace.events["seq"] <= end)]
    # Skip "acquire": until "pages_held" the page has no owner.
    kinds = ["free", "pages_held", "pages_dropped", "create", "unlink", "node_overwritten"]
    places = [int(seq) for seq in changed.loc[changed["kind"].isin(kinds), "seq"]]
    replay, pools = Replay(start), [_pool(start, begin)]
    for seq in _some([*places, end]):
        pools.append(_pool(replay.apply(trace.events, until=seq).snapshot(), seq))
    return tuple(pools)


def first_snapshot(trace: RequestTrace) -> Snapshot | None:
    """Return the first snapshot with a `seq`."""
    placed = trace.snapshots[trace.snapshots["seq"].notna()]
    return None if placed.empty else _snapshot(placed, 0)


def _snapshot(rows: pd.DataFrame, place: int) -> Snapshot:
    return Snapshot.from_row({str(k): v for k, v in rows.iloc[place].items()})


def _some(places: Sequence[int]) -> list[int]:
    if len(places) <= _SAMPLES:
        return sorted(set(places))
    step = (len(places) - 1) / (_SAMPLES - 1)
    return sorted({places[round(n * step)] for n in range(_SAMPLES)})


def _pool(snapshot: Snapshot, seq: int) -> Pool:
    return Pool(seq, **snapshot.counts)


def _taken(trace: RequestTrace, moment: str) -> Snapshot | None:
    rows = trace.snapshots[
        (trace.snapshots["moment"] == moment) & (trace.snapshots["request_id"] == trace.name)
    ]
    return None if rows.empty else _snapshot(rows, -1)
