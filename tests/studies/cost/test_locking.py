"""A lock's cost, from timings whose truth is known; and the measuring itself on real engines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support import ChildRunner

from analysis.studies.cost.locking import alternated, lock_costs, lock_share, median_interval


def timings(added_ns: float, *, noise: float = 20.0, blocks: int = 30) -> pd.DataFrame:
    """An operation of 1 us that takes the lock twice, and one of 5 us with ten times the noise."""
    rng = np.random.default_rng(0)
    rows = []
    for operation, plain, locks, spread in (("page", 1000.0, 2, 1.0), ("prefix", 5000.0, 1, 10.0)):
        for threads in (1, 4):
            for block in range(blocks):
                # What slows a block down slows both sides of it.
                pace = rng.normal(0, 200)
                a, b = rng.normal(0, noise * spread, 2)
                extra = locks * added_ns * (1 if threads == 1 else 3)
                rows.append((operation, threads, block, locks, plain + pace + a,
                             plain + pace + b + extra))  # fmt: skip
    columns = ["operation", "threads", "block", "locks", "plain", "locked"]
    return pd.DataFrame(rows, columns=columns)


def test_what_a_lock_adds_is_found_within_blocks() -> None:
    found = lock_costs(timings(400)).set_index(["operation", "threads"])
    for key, truth in ((("page", 1), 800), (("page", 4), 2400), (("prefix", 1), 400)):
        one = found.loc[key]
        assert one["low"] <= truth <= one["high"]
        assert one["blocks"] == 30
    page = found.loc["page", 1]
    # Much narrower than the blocks' own times, since they are compared pairwise.
    assert page["high"] - page["low"] < 0.5 * (page["plain_high"] - page["plain_low"])


def test_a_lock_that_adds_nothing_adds_nothing() -> None:
    found = lock_costs(timings(0))
    assert (found["low"] <= 0).all()
    assert (found["high"] >= 0).all()


def test_its_share_of_a_request_is_bounded_by_the_dearest_operation() -> None:
    found = lock_costs(timings(400))
    share = lock_share(found, operations=50, latency_s=0.1)
    for name, threads in (("alone", 1), ("contended", 4)):
        own = found[found["threads"] == threads]
        each = own["high"] / own["locks"]
        # Timed least precisely, it may be the dearest: no operation can be above the bound.
        assert share[f"{name}_ns"] == pytest.approx(each.max())
        assert each.idxmax() == own.index[own["operation"] == "prefix"][0]
    assert share["alone_s"] == pytest.approx(50 * share["alone_ns"] / 1e9)
    assert share["alone"] == pytest.approx(share["alone_s"] / 0.1)
    assert lock_share(lock_costs(timings(-900)), 50, 0.1)["alone"] == 0
    unknown = lock_costs(timings(400, blocks=4))  # too few blocks for an interval
    assert np.isnan(lock_share(unknown, 50, 0.1)["alone"])


def test_blocks_in_turns_are_compared_with_their_neighbours() -> None:
    rng = np.random.default_rng(0)
    pace = np.exp(rng.normal(0, 0.5, 40))
    frame = pd.DataFrame({"plain": pace, "locked": 1.1 * pace * np.exp(rng.normal(0, 0.02, 40))})
    found = alternated(frame)
    assert found["low"] < 1.1 < found["high"] < 1.13
    assert np.isnan(alternated(frame.head(4))["low"])
    assert np.isnan(alternated(frame.head(0))["ratio"])


@pytest.mark.parametrize(("count", "ends"), [(6, (0, 5)), (10, (1, 8)), (20, (5, 14))])
def test_the_interval_of_a_median_lies_between_ordered_values(
    count: int, ends: tuple[int, int]
) -> None:
    # The ends are those of any table of the sign test.
    values = np.random.default_rng(0).permutation(count).astype(float)
    assert median_interval(values) == ends
    assert np.isnan(median_interval(values[:5])).all()


def test_the_interval_of_a_median_holds_what_it_promises_for_skewed_values() -> None:
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(0, 2, (1000, 10)))
    held = sum(low <= 1 <= high for low, high in map(median_interval, drawn))
    assert held > 960  # 979 are expected, and fewer than 960 come in 0.01% of such trials


def test_a_lock_is_measured_on_a_live_engine_and_leaves_it_as_it_was(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
from analysis.studies.cost.locking import counted, measure_lock
from analysis.treatments import treat
from analysis.workloads.named import make_workload

asked = make_workload("shared_prefix", count=4, seed=0, max_new_tokens=4).requests
with Engine(EngineConfig(prefix_sharing="trie", page_count=512)) as engine:
    cache = engine.service.native.page_cache
    owners = [cache, cache.page_pool, type(cache)]
    before = [sorted(vars(owner)) for owner in owners]
    lock = measure_lock(engine, asked, blocks=6, seconds=0.002, threads=(1, 2))
    after = [sorted(vars(owner)) for owner in owners]
    pool = cache.page_pool
    _, by_hand = counted(engine, lambda: pool.free_pages(pool.acquire_free_pages(1)))
    right = engine.generate("1 2 3 4 5 ", 6, 20).outcome
costs = lock.costs
say([before == after, lock.operations, lock.alternated["blocks"], by_hand, right,
     costs[["operation", "threads", "locks", "plain_ns"]].values.tolist(), lock.share["alone"]])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same, operations, blocks, by_hand, right, rows, share = done.reply
    assert same
    assert right == "ok"
    assert blocks == 18
    # At the very least: look up, take pages, publish, release.
    assert operations >= 4
    assert by_hand == 2
    assert [row[:3] for row in rows] == [
        ["take a page, give it back", 1, 2],
        ["take a page, give it back", 2, 2],
        ["look a prefix up", 1, 1],
        ["look a prefix up", 2, 1],
    ]
    assert all(row[3] > 0 for row in rows)
    assert 0 <= share < 1
