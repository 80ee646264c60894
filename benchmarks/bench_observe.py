"""What observing costs a request: alternating blocks in one process, on one engine, 8 at once.

Each block asks 8 requests at once and then another 8, unobserved, with events and invocations, and
with automatic snapshots too, in an order that rotates. The figures are ratios of median and 99th
percentile latencies to the unobserved ones, with 95% bootstrap intervals over the blocks.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import psutil

from analysis import Engine, EngineConfig
from analysis.recording import Recording, observe

BLOCKS, WAVES, ROWS, TOKENS = 100, 2, 8, 15
PROMPT = "10 20 30 40 "  # with its answer it stays within two pages
WAYS = ("unobserved", "events and invocations", "with snapshots")


def block(engine: Engine, way: str, number: int) -> tuple[list[float], Recording | None]:
    watching = (
        contextlib.nullcontext()
        if way == WAYS[0]
        else observe(engine, snapshots=way == WAYS[2], memory_every_s=0.1)
    )
    latencies: list[float] = []
    with watching as recording:
        for wave in range(WAVES):
            prompts = [f"{(number + wave) % 9 + 1} {row + 1} {PROMPT}" for row in range(ROWS)]
            asked = [engine.submit(prompt, TOKENS) for prompt in prompts]
            done = [future.result() for future in asked]
            assert all(one.outcome == "ok" for one in done), {one.outcome for one in done}
            latencies += [one.latency_s for one in done]
    return latencies, recording


def ratio(ours: np.ndarray, theirs: np.ndarray, quantile: float) -> str:
    """`ours` and `theirs` have shape [blocks, requests]."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, BLOCKS, size=(1000, BLOCKS))
    ratios = [np.quantile(ours[p], quantile) / np.quantile(theirs[p], quantile) for p in picks]
    low, high = np.percentile(ratios, [2.5, 97.5])
    middle = np.quantile(ours, quantile) / np.quantile(theirs, quantile)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def event_cost(engine: Engine, count: int = 100_000) -> str:
    """Time and memory of one event, told while nothing else happens."""
    with observe(engine, snapshots=False, memory_every_s=0) as recording:
        recorder = recording.recorder
        pages = [[number % 512, 3, 5] for number in range(count)]
        before, started = psutil.Process().memory_info().rss, time.perf_counter()
        for held in pages:
            recorder.event("pages_held", request_id="r", pages=held)
        seconds = time.perf_counter() - started
        grown = psutil.Process().memory_info().rss - before
    return f"an event takes {1e6 * seconds / count:.1f} us and {grown / count:.0f} bytes"


def main() -> None:
    latencies: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    events = requests = 0
    with Engine(EngineConfig(batch_sizes=(ROWS,), page_count=512)) as engine:
        for way in WAYS:
            block(engine, way, 0)
        for number in range(BLOCKS):
            for turn in range(len(WAYS)):
                way = WAYS[(number + turn) % len(WAYS)]
                seconds, recording = block(engine, way, number)
                latencies[way].append(seconds)
                if recording is not None:
                    events += recording.sizes()["events"]
                    requests += len(seconds)
        cost = event_cost(engine)
    arrays = {way: np.array(latencies[way]) for way in WAYS}
    base = arrays[WAYS[0]]
    print(
        f"shortfin {engine.release}, {ROWS} at once, {TOKENS} tokens, {BLOCKS} blocks of"
        f" {WAVES * ROWS} requests a way: unobserved median {1e3 * np.median(base):.1f} ms,"
        f" p99 {1e3 * np.quantile(base, 0.99):.1f} ms; {events / requests:.0f} events a request;"
        f" {cost}"
    )
    for way in WAYS[1:]:
        print(
            f"  {way}: median x {ratio(arrays[way], base, 0.5)},"
            f" p99 x {ratio(arrays[way], base, 0.99)}"
        )


if __name__ == "__main__":
    main()
