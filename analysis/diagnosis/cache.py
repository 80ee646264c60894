"""The cache before and after a request: as it was recorded, or as its events tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.diagnosis.case import Case
from analysis.recording.replay import Replay
from analysis.snapshots.snapshot import Snapshot

_SAMPLES = 80


@dataclass(frozen=True)
class Caches:
    """The cache around a request."""

    before: Snapshot | None
    after: Snapshot | None
    how: str
    """Recorded, or replayed; or why there is none, in a sentence."""


@dataclass(frozen=True)
class Pool:
    """How many pages were in which state at one place among the events."""

    seq: int
    free: int
    live: int
    cached: int
    leaked: int


def caches_of(case: Case) -> Caches:
    """Return the cache when the request was sent, and when it had ended."""
    if case.events.empty:
        return Caches(None, None, "No events were recorded, so the cache around it is unknown.")
    if case.snapshots["seq"].notna().sum() == 0:
        return Caches(None, None, "No snapshot was recorded, so there is nothing to replay from.")
    sent, ended = case.seq_of("submitted"), case.seq_of("done")
    taken = {m: _taken(case, m) for m in ("before", "after")}
    before = taken["before"] or cache_at(case, None if sent is None else sent - 1)
    after = taken["after"] or cache_at(case, ended)
    lacking = [word for word, found in (("sent", before), ("ended", after)) if found is None]
    if lacking:
        how = f"It was not seen when it was {' or '.join(lacking)}."
        return Caches(before, after, how)
    how = "As recorded." if all(taken.values()) else "Replayed from the recorded events."
    return Caches(before, after, how)


def cache_at(case: Case, seq: int | None) -> Snapshot | None:
    """Return the cache after the event `seq`, replayed from the last snapshot before it."""
    placed = case.snapshots[case.snapshots["seq"].notna()]
    if seq is None or placed.empty:
        return None
    earlier = placed[placed["seq"] <= seq]
    sound = earlier[earlier["consistent"].fillna(value=True).astype(bool)]
    rows = sound if len(sound) else earlier
    if rows.empty:
        return None
    start = _snapshot(rows, -1)
    return Replay(start).apply(case.events, until=seq).snapshot()


def pool_until(case: Case, end: int) -> tuple[Pool, ...]:
    """Return the pool at up to 80 places among the events, from the first snapshot on, in order."""
    start = first_snapshot(case)
    if start is None or start.seq is None or case.events.empty:
        return ()
    begin = start.seq
    changed = case.events[(case.events["seq"] > begin) & (case.events["seq"] <= end)]
    # Not when pages were just taken: for a moment nobody is seen to hold them.
    kinds = ["free", "pages_held", "pages_dropped", "create", "unlink", "node_overwritten"]
    places = [int(seq) for seq in changed.loc[changed["kind"].isin(kinds), "seq"]]
    replay, pools = Replay(start), [_pool(start, begin)]
    for seq in _some([*places, end]):
        pools.append(_pool(replay.apply(case.events, until=seq).snapshot(), seq))
    return tuple(pools)


def first_snapshot(case: Case) -> Snapshot | None:
    """Return the first snapshot that has a place among the events."""
    placed = case.snapshots[case.snapshots["seq"].notna()]
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


def _taken(case: Case, moment: str) -> Snapshot | None:
    rows = case.snapshots[
        (case.snapshots["moment"] == moment) & (case.snapshots["request_id"] == case.name)
    ]
    return None if rows.empty else _snapshot(rows, -1)
