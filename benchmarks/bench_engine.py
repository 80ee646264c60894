"""What asking through `Engine` costs, beside handing requests to shortfin alone, in one process.

Blocks of full batches alternate between the two ways on one engine of the installed release; the
figure is the ratio of the median latencies, with its 95% bootstrap interval over the blocks.
"""

from __future__ import annotations

import threading
import time
import uuid

import numpy as np

from analysis import Engine, EngineConfig
from analysis.shortfin.port import Answer, Call

BLOCKS, TOKENS, PROMPT = 60, 16, "10 20 30 40 50 "


def through_engine(engine: Engine, rows: int) -> list[float]:
    asked = [engine.submit(PROMPT, TOKENS) for _ in range(rows)]
    return [future.result().latency_s for future in asked]


def alone(engine: Engine, rows: int) -> list[float]:
    ids = tuple(engine.tokenizer.encode(PROMPT))
    latencies: list[float] = []
    done = threading.Semaphore(0)
    for _ in range(rows):
        started = time.monotonic()

        def end(answer: Answer, started: float = started) -> None:
            latencies.append(time.monotonic() - started)
            done.release()

        call = Call(uuid.uuid4().hex, PROMPT, ids, TOKENS, lambda token: None, end)
        engine.service.launch(call)  # type: ignore[union-attr]
    for _ in range(rows):
        done.acquire(timeout=60)
    return latencies


def main() -> None:
    rows = 4
    with Engine(EngineConfig(batch_sizes=(rows,))) as engine:
        for way in (through_engine, alone):
            way(engine, rows)
        blocks = [
            (np.median(through_engine(engine, rows)), np.median(alone(engine, rows)))
            for _ in range(BLOCKS)
        ]
    ours, theirs = np.array(blocks).T
    rng = np.random.default_rng(0)
    picks = rng.integers(0, BLOCKS, size=(2000, BLOCKS))
    ratios = np.median(ours[picks], axis=1) / np.median(theirs[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    print(
        f"shortfin {engine.release}, {rows} at once, {TOKENS} tokens, {BLOCKS} paired blocks:"
        f" median latency through Engine / alone = {np.median(ours) / np.median(theirs):.3f}"
        f" (95% interval {low:.3f} to {high:.3f}); alone {1e3 * np.median(theirs):.1f} ms"
    )


if __name__ == "__main__":
    main()
