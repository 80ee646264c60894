"""What a lock around the cache costs: by operation, by number of threads, and by request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats

from analysis.core.errors import EngineError
from analysis.engine import Engine, EngineConfig
from analysis.shortfin.treatment import cache_of
from analysis.studies.cost.measures import LOCK
from analysis.treatments import treat
from analysis.workloads.named import make_workload

if TYPE_CHECKING:
    from analysis.workloads.workload import Request

_T = TypeVar("_T")
THREADS = (1, 2, 4, 8)
_PATIENCE_S = 60.0
_CALLS = 50
"""Calls between two readings of the clock."""
_ROUNDS = 3
"""Blocks of requests for each block of single operations: requests scatter more."""


@dataclass(frozen=True)
class LockCost:
    """Cost of a lock around the cache of one engine."""

    release: str
    prefix_sharing: str
    operations: float
    """How often a request takes the lock."""
    latency_s: float
    """Median latency of a request."""
    costs: pd.DataFrame
    """See `lock_costs`."""
    alternated: Mapping[str, float]
    """See `alternated`."""

    @property
    def share(self) -> dict[str, float]:
        """See `lock_share`."""
        return lock_share(self.costs, self.operations, self.latency_s)


def measure_lock(
    engine: Engine,
    requests: Sequence[Request],
    *,
    blocks: int = 20,
    seconds: float = 0.03,
    threads: Sequence[int] = THREADS,
) -> LockCost:
    """Measure the cost of a lock around the cache of a live engine.

    First the requests, all at once (so no more than the engine accepts), with and without the lock
    in turns, in three times as many blocks; a block with an unanswered request is left out. Then
    how often a request takes the lock; then single operations of the idle engine's cache, called
    by `threads` without pause for `seconds`, which must be several times the interpreter's switch
    interval (5 ms) for the threads to meet. Raises EngineError if a request is not answered while
    the lock is counted.
    """
    send = partial(_send, engine, requests)
    _in_turns(engine, send, -1)  # only warms up
    turns = pd.DataFrame(_in_turns(engine, send, n) for n in range(_ROUNDS * blocks)).dropna()
    latency_s, count = counted(engine, send)
    if np.isnan(latency_s):
        raise EngineError("A request was not answered, so the lock cannot be counted.")
    rows = []
    for name, call in _operations(engine, requests[0].prompt).items():
        row = {"operation": name, "locks": counted(engine, call)[1]}
        for number, block in product(threads, range(blocks)):
            times = _in_turns(engine, partial(_call_ns, call, number, seconds), block)
            rows.append({**row, "threads": number, **times})
    return LockCost(
        release=engine.release,
        prefix_sharing=engine.config.prefix_sharing,
        operations=count / len(requests),
        latency_s=latency_s,
        costs=lock_costs(pd.DataFrame(rows)),
        alternated=alternated(turns),
    )


def lock_cost(
    config: EngineConfig, log_dir: Path, workload: str, blocks: int, seed: int = 0
) -> LockCost:
    """Measure the cost of a lock on a new engine, with as many requests as a full batch has."""
    with Engine(config, log_dir=log_dir) as engine:
        sent = make_workload(workload, count=max(config.batch_sizes), seed=seed).requests
        return measure_lock(engine, sent, blocks=blocks)


def counted(engine: Engine, act: Callable[[], _T]) -> tuple[_T, int]:
    """Return what `act` returns, and how often `lock-cache` was acquired meanwhile."""
    with treat(engine, LOCK):
        assert engine.service is not None
        lock = engine.service.treatment_locks[-1]
        before = lock.acquired
        return act(), lock.acquired - before


def lock_costs(timed: pd.DataFrame) -> pd.DataFrame:
    """Return what the lock adds to a call, for each operation and number of threads.

    `timed` has a row a block: operation, threads, locks (how often a call takes the lock), `plain`
    and `locked` (ns a call). Columns: operation, threads, blocks, locks; `plain_ns`, `locked_ns`
    and `added_ns` (locked - plain within a block), medians over blocks, each with its
    `median_interval` (`plain_low` and so on; `low` and `high` for what is added).
    """
    rows = []
    for (operation, threads), group in timed.groupby(["operation", "threads"], sort=False):
        row: dict[str, Any] = {"operation": operation, "threads": threads, "blocks": len(group)}
        row["locks"] = int(group["locks"].iloc[0])
        added = group["locked"] - group["plain"]
        for name, prefix, values in (
            ("plain_ns", "plain_", group["plain"]),
            ("locked_ns", "locked_", group["locked"]),
            ("added_ns", "", added),
        ):
            low, high = median_interval(values.to_numpy(dtype=float))
            row |= {name: values.median(), f"{prefix}low": low, f"{prefix}high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def alternated(blocks: pd.DataFrame) -> dict[str, float]:
    """Return the median ratio locked / plain over blocks, with its exact interval.

    Keys: blocks, ratio, low, high (NaN with fewer than 6 blocks).
    """
    ratios = (blocks["locked"] / blocks["plain"]).to_numpy(dtype=float)
    low, high = median_interval(ratios)
    middle = float(np.median(ratios)) if len(ratios) else np.nan
    return {"blocks": float(len(ratios)), "ratio": middle, "low": low, "high": high}


def median_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the exact 95% interval of a median for any distribution; NaN for under 6 values.

    Between two of the ordered values, from the sign test (W. R. Thompson 1936, Annals of
    Mathematical Statistics 7:122).
    """
    rank = int(scipy_stats.binom.ppf(0.025, len(values), 0.5))
    if rank < 1:
        return np.nan, np.nan
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def lock_share(costs: pd.DataFrame, operations: float, latency_s: float) -> dict[str, float]:
    """Return what a lock adds to a request, in seconds and as a share of its latency.

    Alone (one thread) and contended (the most threads), for the most expensive operation that was
    timed, at the upper end of its interval: an upper bound if no other operation costs more.
    `costs` comes from `lock_costs`, `operations` is the number of lockings of a request. Keys:
    alone_s, alone, contended_s, contended; alone_ns and contended_ns for one locking.
    """
    share = {}
    for name, threads in (("alone", costs["threads"].min()), ("contended", costs["threads"].max())):
        own = costs[costs["threads"] == threads]
        highest = float((own["high"] / own["locks"]).max(skipna=False))
        share[f"{name}_ns"] = highest if np.isnan(highest) else max(0.0, highest)
        share[f"{name}_s"] = operations * share[f"{name}_ns"] / 1e9
        share[name] = share[f"{name}_s"] / latency_s
    return share


def _operations(engine: Engine, prompt: str) -> dict[str, Callable[[], object]]:
    """Return the operations to time; the prompt must have been answered before."""
    cache, tokens = cache_of(engine), engine.tokenizer.encode(prompt)
    pool = cache.page_pool

    def page() -> None:
        taken = pool.acquire_free_pages(1)
        if taken is None:
            raise EngineError("The pool has no free page to time: start with more pages.")
        pool.free_pages(taken)

    operations: dict[str, Callable[[], object]] = {"take a page, give it back": page}
    name = next((name for name in ("match", "_match") if hasattr(cache, name)), None)
    if name is not None:
        operations["look a prefix up"] = lambda: getattr(cache, name)(tokens)
    return operations


def _in_turns(engine: Engine, measure: Callable[[], float], block: int) -> dict[str, float]:
    """Measure without and with the lock, in reverse order in every second block."""
    times = {}
    for side in ("plain", "locked")[:: -1 if block % 2 else 1]:
        with treat(engine, *([LOCK] if side == "locked" else [])):
            times[side] = measure()
    return times


def _send(engine: Engine, requests: Sequence[Request]) -> float:
    """Send all requests at once; return their median latency, NaN if one is not answered."""
    sent = [engine.submit(r.prompt, r.max_new_tokens, 30.0) for r in requests]
    done = [future.result(40.0) for future in sent]
    answered = all(one.outcome in ("ok", "wrong") for one in done)
    return float(np.median([one.latency_s for one in done])) if answered else np.nan


def _call_ns(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Return nanoseconds a call, when so many threads call without pause."""
    barrier = threading.Barrier(threads)
    spans: list[tuple[int, int, int]] = []
    errors: list[Exception] = []

    def work() -> None:
        barrier.wait(_PATIENCE_S)
        began, calls = time.perf_counter_ns(), 0
        try:
            while time.perf_counter_ns() - began < seconds * 1e9:
                for _ in range(_CALLS):
                    call()
                calls += _CALLS
        except Exception as error:
            errors.append(error)
        spans.append((began, time.perf_counter_ns(), calls))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_PATIENCE_S)
    if errors:
        raise errors[0]
    if len(spans) < threads:
        raise EngineError(f"{threads} threads did not end within {_PATIENCE_S:.0f} s: try fewer.")
    whole = max(end for _, end, _ in spans) - min(began for began, _, _ in spans)
    return whole / sum(calls for _, _, calls in spans)
