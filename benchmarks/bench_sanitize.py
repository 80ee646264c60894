"""What the sanitizer costs a request: alternating blocks in one process, on one engine, 8 at once.

Each block asks 64 requests, 8 at once, with 4,096 pages: alone, observed (events and invocations),
and sanitized. The figures are medians, over the turns, of ratios of a block's median latency to
that of the unobserved block of its turn, with 95% bootstrap intervals. Then the check itself,
without an engine: microseconds an invocation against the slots that it reads and the size of the
pool.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
from bench_observe import PROMPT, ROWS, TOKENS

from analysis import Engine, EngineConfig
from analysis.recording import observe
from analysis.sanitizer import sanitize
from analysis.sanitizer.checker import Checker
from analysis.sanitizer.trace import Event, Invocation
from analysis.snapshots.snapshot import CacheState, Snapshot

BLOCKS, REQUESTS, PAGES, STRIDE = 40, 64, 4096, 16
WAYS = ("unobserved", "observed", "plain", "sanitized")


def block(engine: Engine, way: str, number: int) -> list[float]:
    watching = {
        "unobserved": lambda: contextlib.nullcontext(),
        "plain": lambda: sanitize(engine, checksums=None),
        "observed": lambda: observe(engine, snapshots=False, memory_every_s=0),
        "sanitized": lambda: sanitize(engine),
    }[way]()
    latencies: list[float] = []
    with watching as seen:
        for wave in range(REQUESTS // ROWS):
            prompts = [f"{(number + wave) % 9 + 1} {row + 1} {PROMPT}" for row in range(ROWS)]
            done = [future.result() for future in [engine.submit(p, TOKENS) for p in prompts]]
            assert all(one.outcome == "ok" for one in done), {one.outcome for one in done}
            latencies += [one.latency_s for one in done]
    if way == "sanitized":
        assert seen.invocations >= REQUESTS // ROWS * TOKENS, seen.invocations
    return latencies


def ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Compare the medians of blocks that ran one after the other, [blocks]."""
    ratios = ours / theirs
    picks = np.random.default_rng(0).integers(0, BLOCKS, size=(1000, BLOCKS))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def invocation_cost(page_count: int, length: int, invocations: int = 300) -> float:
    """Microseconds that a healthy decode of 8 rows of `length` tokens takes to check."""
    blocks = -(-(length + invocations) // STRIDE)
    free = list(range(page_count))
    checker = Checker(Snapshot(CacheState(page_count, free, {}), seq=0), STRIDE)
    ids = [f"r{row}" for row in range(ROWS)]
    tables = np.array([[1 + row * blocks + i for i in range(blocks)] for row in range(ROWS)])
    seq = 1

    def event(kind: str, request: str, pages: tuple[int, ...] = (), **extras: object) -> None:
        nonlocal seq
        rest = (None,) * (len(Event._fields) - 8)
        checker.put(seq, Event(seq, 0.0, "t", request, None, kind, pages, *rest, extras))
        seq += 1

    def invocation(phase: str, tokens: np.ndarray, lengths: int, starts: np.ndarray | None) -> None:
        nonlocal seq
        seq_lens = np.full(ROWS, lengths)
        begun = Invocation(
            seq, phase, ids, tokens, seq_lens, starts, tables, seq, seq + 1, "t", 0.0
        )
        checker.put(seq, begun)
        checker.put(seq + 1, None)
        seq += 2

    for row, name in enumerate(ids):
        event("submitted", name, tokens=(7,) * length)
        event("acquire", name, tuple(tables[row].tolist()))
        event("pages_held", name, tuple(tables[row].tolist()))
    prompt = np.zeros((ROWS, blocks * STRIDE), dtype=np.int64)
    prompt[:, :length] = 7
    invocation("prefill", prompt, length, None)
    checker.go()
    for step in range(invocations):
        invocation("decode", np.full((ROWS, 1), 7), length + step + 1, np.full(ROWS, length + step))
    started = time.perf_counter()
    checker.go()
    seconds = time.perf_counter() - started
    assert not checker.findings, str(checker.findings)
    assert checker.findings.invocations == invocations + 1
    return 1e6 * seconds / invocations


def main() -> None:
    medians: dict[str, list[float]] = {way: [] for way in WAYS}
    with Engine(EngineConfig(batch_sizes=(ROWS,), page_count=PAGES)) as engine:
        for way in WAYS:
            block(engine, way, 0)
        for number in range(BLOCKS):
            for turn in range(len(WAYS)):
                way = WAYS[(number + turn) % len(WAYS)]
                medians[way].append(float(np.median(block(engine, way, number))))
    arrays = {way: np.array(medians[way]) for way in WAYS}
    base = arrays["unobserved"]
    print(
        f"shortfin {engine.release}, {REQUESTS} requests a block, {ROWS} at once, {PAGES} pages,"
        f" {BLOCKS} turns: unobserved median {1e3 * np.median(base):.1f} ms"
    )
    for way in WAYS[1:]:
        print(f"  {way}: median x {ratio(arrays[way], base)}")
    for page_count, length in ((4096, 50), (4096, 500), (4096, 5_000), (100_000, 500)):
        cost = invocation_cost(page_count, length)
        print(f"  {cost:.0f} us a decode of {ROWS} rows of {length} tokens, {page_count} pages")


if __name__ == "__main__":
    main()
