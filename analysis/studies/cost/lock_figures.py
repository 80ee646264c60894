"""A lock by itself, measured on one live engine: all that is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.core.errors import EngineError
from analysis.studies.cost.arms import LOCK
from analysis.studies.cost.locking import (
    THREADS,
    alternate,
    alternated,
    count_operations,
    lock_costs,
    lock_share,
    time_operations,
)

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.workloads.workload import Request


_TURNS = 3
"""Blocks of requests for each block of single operations: they scatter more."""


@dataclass(frozen=True)
class LockFigures:
    """What was measured of a lock by itself, on one setting."""

    release: str
    prefix_sharing: str
    operations: float
    """How often a request takes the lock."""
    latency_s: float
    """What a request takes."""
    costs: pd.DataFrame
    """As `analysis.studies.cost.lock_costs` returns it."""
    alternated: Mapping[str, float]
    """As `analysis.studies.cost.alternated` returns it."""

    @property
    def share(self) -> dict[str, float]:
        """What it adds to a request, estimated from above."""
        return lock_share(self.costs, self.operations, self.latency_s)


def measure_lock(
    engine: Engine,
    requests: Sequence[Request],
    *,
    blocks: int = 20,
    seconds: float = 0.03,
    threads: Sequence[int] = THREADS,
) -> LockFigures:
    """Measure on a live engine what a lock around its cache costs.

    The requests are sent all at once, so that there must be no more of them than the engine takes.
    First the same requests again and again, with the lock and without it in turns (in three times
    as many blocks); then how often a
    request takes it; then, with the engine idle, single operations (see `time_operations`). Raises
    EngineError if a request is not answered while the lock is counted.
    """
    turns = alternate(engine, requests, LOCK, blocks=_TURNS * blocks)
    with count_operations(engine) as counts:
        asked = [engine.submit(r.prompt, r.max_new_tokens) for r in requests]
        done = [future.result() for future in asked]
    if bad := [one.error or one.outcome for one in done if one.outcome not in ("ok", "wrong")]:
        raise EngineError(f"A request was not answered, so the lock cannot be counted: {bad[0]}.")
    timed = time_operations(
        engine, requests[0].prompt, threads=threads, blocks=blocks, seconds=seconds
    )
    return LockFigures(
        release=engine.release,
        prefix_sharing=engine.config.prefix_sharing,
        operations=sum(counts.values()) / len(requests),
        latency_s=float(pd.Series([one.latency_s for one in done]).median()),
        costs=lock_costs(timed),
        alternated=alternated(turns),
    )
