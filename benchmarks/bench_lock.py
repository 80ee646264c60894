"""The cost of one lock around the cache, without prefix sharing and with the trie.

The same requests run again and again, all at once on one engine, with and without the lock in
turns; the median ratio of latencies has an exact 95% interval over the blocks. Then 1 to 8 threads
call single operations of the idle engine's cache, which gives the time that the lock adds.
"""

from __future__ import annotations

from analysis import Engine, EngineConfig
from analysis.studies.cost.locking import measure_lock
from analysis.workloads.named import make_workload

BLOCKS, ROWS, PAGES = 40, 8, 4096


def main() -> None:
    requests = make_workload("shared_prefix", count=ROWS, seed=0).requests
    for sharing in ("none", "trie"):
        config = EngineConfig(batch_sizes=(ROWS,), page_count=PAGES, prefix_sharing=sharing)
        with Engine(config) as engine:
            lock = measure_lock(engine, requests, blocks=BLOCKS)
        turns, share = lock.alternated, lock.share
        print(
            f"shortfin {lock.release}, prefix sharing {sharing}, {ROWS} at once,"
            f" {turns['blocks']:.0f} blocks: a lock makes the median latency x"
            f" {turns['ratio']:.3f} ({turns['low']:.3f} to {turns['high']:.3f});"
            f" a request takes it {lock.operations:.0f} times, at most"
            f" {1e6 * share['alone_s']:.0f} us of {1e3 * lock.latency_s:.0f} ms"
        )
        for row in lock.costs.to_dict("records"):
            print(
                f"  {row['operation']}, {row['threads']} threads: {row['plain_ns']:.0f} ns, with a"
                f" lock {row['added_ns']:+.0f} ns ({row['low']:+.0f} to {row['high']:+.0f})"
            )


if __name__ == "__main__":
    main()
