"""How fast a million events become a frame: from an Arrow table, and from a run on disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from analysis.runs.schema import TABLES
from analysis.runs.store import RunWriter, load_run
from analysis.runs.tables import to_frame

ROWS, REPEATS = 1_000_000, 3
KINDS = {
    "token": 0.3, "pages_held": 0.12, "acquire": 0.12, "free": 0.1, "pages_dropped": 0.1,
    "operation": 0.1, "reference": 0.08, "match": 0.04, "create": 0.03, "evict": 0.01,
}  # fmt: skip
TRIAL = {
    "run_id": "bench", "trial_id": "c", "release": "3.1.0", "device": "local-task",
    "prefix_sharing": "trie", "page_count": 256, "batch_sizes": [4], "concurrency": 32,
    "repeat": 0, "workload": "made up", "treatments": [], "options": "{}", "status": "ok",
    "duration_s": 1.0,
}  # fmt: skip


def events(rows: int, seed: int = 0) -> pa.Table:
    """Return made-up events: half of them with one to eight pages, most numbers often missing."""
    rng = np.random.default_rng(seed)

    def some(values: np.ndarray, share: float) -> pa.Array:
        return pa.array(values, mask=rng.random(rows) > share)

    def pages() -> pa.Array:
        present = rng.random(rows) < 0.5
        lengths = np.where(present, rng.integers(1, 9, rows), 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        values = pa.array(rng.integers(0, 256, offsets[-1]), type=pa.int32())
        return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~present))

    def texts(choices: list[str]) -> np.ndarray:
        return np.array(choices, dtype=object)[rng.integers(0, len(choices), rows)]

    shares = np.array(list(KINDS.values()))
    columns = {
        "seq": pa.array(np.arange(rows)),
        "trial_id": pa.repeat("c", rows),
        "t_s": pa.array(np.cumsum(rng.integers(1_000, 50_000, rows)) / 1e9),
        "thread": pa.array(texts([f"worker-{n}" for n in range(4)])),
        "request_id": some(texts([f"r{n:05d}" for n in range(2_000)]), 0.95),
        "operation": some(texts(["acquire", "extend", "publish", "release"]), 0.6),
        "kind": pa.array(rng.choice(np.array(list(KINDS), dtype=object), rows, p=shares)),
        "pages": pages(),
        "message": some(texts([f"{n} tokens" for n in range(500)]), 0.2),
    }
    for name, share in (("free_pages", 0.5), ("node", 0.15), ("parent", 0.05), ("ref_before", 0.1),
                        ("ref_count", 0.1), ("tokens_hit", 0.05), ("tokens_missed", 0.05),
                        ("value", 0.3)):  # fmt: skip
        columns[name] = some(rng.integers(0, 1_000, rows), share)
    schema = TABLES["events"]
    arrays = [columns.get(f.name, pa.nulls(rows, f.type)).cast(f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def measure(what: str, action) -> None:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        frame = action()
        seconds.append(time.perf_counter() - started)
        assert len(frame) == ROWS
    best, rate = min(seconds), ROWS / min(seconds)
    print(f"{what}: {ROWS:,} events in {best:.2f} s (best of {REPEATS}), {rate:,.0f} rows/s")


def main() -> None:
    table = events(ROWS)
    measure("to_frame, from memory", lambda: to_frame("events", table))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run"
        RunWriter.create(path, {"plan": None, "seed": 0}).write_trial(TRIAL, [], events=table)
        size = (path / "trials" / "c" / "events.parquet").stat().st_size
        measure(f"load_run, from {size / 1e6:.0f} MB on disk", lambda: load_run(path).events)


if __name__ == "__main__":
    main()
