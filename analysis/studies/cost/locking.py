"""What a lock costs by itself: by the operation, by threads that want it, by the request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats

from analysis.core.errors import EngineError
from analysis.shortfin.treatment import allocation_kinds, cache_of, owner_of, replace_attribute
from analysis.studies.cost.arms import LOCK
from analysis.treatments import treat
from analysis.treatments.scheduling import ALLOCATION_OPERATIONS, CACHE_OPERATIONS, POOL_OPERATIONS

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.workloads.workload import Request

THREADS = (1, 2, 4, 8)
_PATIENCE_S = 60.0
_BETWEEN_LOOKS = 50
"""Calls between two looks at the clock."""


@contextmanager
def count_operations(engine: Engine) -> Iterator[Counter[str]]:
    """Count, by name, the operations of the live cache and pool that `lock-cache` would lock.

    One operation may call another: each counts, and the lock is re-entrant.
    """
    cache = cache_of(engine)
    counts: Counter[str] = Counter()
    guard = threading.Lock()
    owners: list[tuple[Any, Sequence[str]]] = [
        (cache, CACHE_OPERATIONS), (cache.page_pool, POOL_OPERATIONS)
    ]  # fmt: skip
    owners += [(kind, ALLOCATION_OPERATIONS) for kind in allocation_kinds(engine)]
    with ExitStack() as undo:
        for owner, names in owners:
            for name in (name for name in names if hasattr(owner, name)):
                _counted(undo, owner, name, cache, counts, guard)
        yield counts


def _counted(
    undo: ExitStack, owner: Any, name: str, cache: Any, counts: Counter[str], guard: Any
) -> None:
    call = getattr(owner, name)

    def counted(*args: Any, **named: Any) -> Any:
        if not isinstance(owner, type) or owner_of(args[0]) is cache:
            with guard:
                counts[name] += 1
        return call(*args, **named)

    replace_attribute(undo, owner, name, counted)


def time_operations(
    engine: Engine,
    prompt: str,
    *,
    threads: Sequence[int] = THREADS,
    blocks: int = 20,
    seconds: float = 0.03,
) -> pd.DataFrame:
    """Time operations on an idle engine's own cache, without a lock and with one, in turns.

    `prompt` is one that it has answered before, to be looked up where there is a prefix cache.
    `seconds` is how long the threads call without pause; it must be several times the interpreter's
    switch interval (5 ms), or they do not meet. Returns a row for each operation, number of threads
    and block: `locks`, how often one call takes the lock; `plain_ns` and `locked_ns`, the time from
    the first call to the last return over the number of calls of all threads. Which of the two
    comes first changes from block to block.
    """
    rows = []
    for operation, call in _operations(engine, prompt).items():
        with count_operations(engine) as counts:
            call()
        for number in threads:
            for block in range(blocks):
                row: dict[str, Any] = {"operation": operation, "threads": number, "block": block}
                row["locks"] = sum(counts.values())
                for column in _turns(("plain_ns", "locked_ns"), block):
                    with treat(engine, *([LOCK] if column == "locked_ns" else [])):
                        row[column] = _timed(call, number, seconds)
                rows.append(row)
    columns = ["operation", "threads", "block", "locks", "plain_ns", "locked_ns"]
    return pd.DataFrame(rows, columns=columns)


def _operations(engine: Engine, prompt: str) -> dict[str, Callable[[], object]]:
    cache, tokens = cache_of(engine), engine.tokenizer.encode(prompt)
    pool = cache.page_pool

    def page() -> None:
        taken = pool.acquire_free_pages(1)
        if taken is None:
            raise EngineError("The pool has no free page to time: start with more pages.")
        pool.free_pages(taken)

    found: dict[str, Callable[[], object]] = {"take a page, give it back": page}
    name = next((name for name in ("match", "_match") if hasattr(cache, name)), None)
    if name is not None:
        found["look a prefix up"] = lambda: getattr(cache, name)(tokens)
    return found


def _timed(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Return nanoseconds a call, of so many threads for so many seconds."""
    barrier = threading.Barrier(threads)
    spans: list[tuple[int, int, int]] = []
    errors: list[Exception] = []

    def work() -> None:
        barrier.wait(_PATIENCE_S)
        began, calls = time.perf_counter_ns(), 0
        try:
            while time.perf_counter_ns() - began < seconds * 1e9:
                for _ in range(_BETWEEN_LOOKS):
                    call()
                calls += _BETWEEN_LOOKS
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


def lock_costs(timed: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return for each operation and number of threads what the lock adds to a call.

    Columns: operation, threads, blocks, locks, `plain_ns` and `locked_ns` (medians over blocks,
    each with an interval, `plain_low` and so on), `added_ns`, the median of locked - plain within a
    block, with `low` and `high`. For the intervals see `median_interval`.
    """
    rows = []
    for key, group in timed.groupby(["operation", "threads"], sort=False):
        operation, threads = map(str, key)
        plain, locked = (group[name].to_numpy(dtype=float) for name in ("plain_ns", "locked_ns"))
        row = {"operation": operation, "threads": int(threads), "blocks": len(group),
               "locks": int(group["locks"].iloc[0])}  # fmt: skip
        for values, name, ends in (
            (plain, "plain_ns", ("plain_low", "plain_high")),
            (locked, "locked_ns", ("locked_low", "locked_high")),
            (locked - plain, "added_ns", ("low", "high")),
        ):
            interval = median_interval(values, confidence)
            row |= {name: float(np.median(values)), **dict(zip(ends, interval, strict=True))}
        rows.append(row)
    return pd.DataFrame(rows)


def median_interval(
    values: npt.NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the exact interval of a median, whatever the distribution; NaN where it has no end.

    Between two of the ordered values, as the sign test has it (W. R. Thompson 1936, Annals of
    Mathematical Statistics 7:122). At least 6 values are needed for 95%.
    """
    rank = int(scipy_stats.binom.ppf(0.5 - confidence / 2, len(values), 0.5))
    if rank < 1:
        return np.nan, np.nan
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def lock_share(costs: pd.DataFrame, operations: float, latency_s: float) -> dict[str, float]:
    """Return what a lock adds to a request, in seconds and as a share of its latency.

    Alone (one thread) and contended (the most threads), by the dearest of the operations that were
    timed, each at the upper end of its interval: a bound as far as no other is dearer. `costs` is
    what `lock_costs` returns, `operations` how many a request does. Keys: alone_s, alone,
    contended_s, contended, and alone_ns and contended_ns, what one taking of the lock adds.
    """
    share = {}
    for name, threads in (("alone", costs["threads"].min()), ("contended", costs["threads"].max())):
        own = costs[costs["threads"] == threads]
        dearest = float((own["high"] / own["locks"]).max(skipna=False))
        share[f"{name}_ns"] = dearest if np.isnan(dearest) else max(0.0, dearest)
        share[f"{name}_s"] = operations * share[f"{name}_ns"] / 1e9
        share[name] = share[f"{name}_s"] / latency_s
    return share


def alternate(
    engine: Engine,
    requests: Sequence[Request],
    *names: str,
    blocks: int = 12,
    timeout_s: float = 30.0,
) -> pd.DataFrame:
    """Ask one engine the same requests at once, again and again, untreated and treated in turns.

    For treatments that can come and go while an engine lives, such as `lock-cache`: two blocks are
    a fraction of a second apart, on the same engine, so that they compare closely. Returns a row a
    block: `plain_s` and `treated_s`, median latencies, and `answered`. Blocks in which a request is
    not answered are left out.
    """
    rows = []
    for block in range(-1, blocks):  # one ahead, which only warms it up
        row: dict[str, Any] = {"block": block, "answered": 0}
        for column in _turns(("plain_s", "treated_s"), block):
            treated: AbstractContextManager[object] = nullcontext()
            if column == "treated_s":
                treated = treat(engine, *names)
            with treated:
                asked = [engine.submit(r.prompt, r.max_new_tokens, timeout_s) for r in requests]
                done = [future.result(timeout_s + 10) for future in asked]
            row["answered"] += sum(one.outcome in ("ok", "wrong") for one in done)
            row[column] = float(np.median([one.latency_s for one in done]))
        if block >= 0 and row["answered"] == 2 * len(requests):
            rows.append(row)
    return pd.DataFrame(rows, columns=["block", "answered", "plain_s", "treated_s"])


def alternated(blocks: pd.DataFrame, *, confidence: float = 0.95) -> Mapping[str, float]:
    """Return the median quotient treated / plain over blocks, with its exact interval.

    Keys: blocks, ratio, low, high (NaN where there are fewer than 6 blocks).
    """
    quotients = (blocks["treated_s"] / blocks["plain_s"]).to_numpy(dtype=float)
    low, high = median_interval(quotients, confidence)
    middle = float(np.median(quotients)) if len(quotients) else np.nan
    return {"blocks": float(len(quotients)), "ratio": middle, "low": low, "high": high}


def _turns(columns: tuple[str, str], block: int) -> tuple[str, ...]:
    return columns[::-1] if block % 2 else columns
