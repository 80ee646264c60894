"""A comparison of costs from end to end, on real engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.studies.cost.compare import costs
from analysis.studies.cost.measures import ALL, CACHE_METRICS
from analysis.studies.cost.plan import full_batch, run_costs


@pytest.mark.slow
def test_every_arm_is_timed_and_then_recorded(tmp_path: Path, release: str) -> None:
    options: dict[str, Any] = {
        "concurrency": (4,), "pages": 128, "workload": "prefix_reuse", "rounds": 3, "repeats": 1,
        "recorded_repeats": 1, "progress": False,
    }  # fmt: skip
    found = run_costs(tmp_path, release, **options)
    arms = ["untreated", "lock-cache", ALL]
    measures = found.measures
    assert sorted(measures["arm"]) == sorted(arms)
    assert list(measures["comparable"]) == [True] * 3
    assert set(measures["answered"]) == {12}
    for name in ("ttft_s", "inter_token_s", "latency_s", "tokens_per_s", "peak_rss_bytes"):
        assert (measures[name] > 0).all(), name
    assert (measures["ttft_s"] < measures["latency_s"]).all()
    # A token cannot come later than the answer that ends with it.
    assert (14 * measures["inter_token_s"] < 1.5 * measures["latency_s"]).all()
    seen = found.cache
    assert sorted(seen["arm"]) == sorted(arms)
    assert ((seen["hit_rate"] > 0) & (seen["hit_rate"] < 1)).all()
    assert ((seen["peak_pages"] > 8) & (seen["peak_pages"] <= 128)).all()
    assert list(found.trials["recording"]) == ["nothing"] * 3 + ["events"] * 3
    compared = costs(measures)
    assert set(compared["verdict"]) == {"too few trials"}
    assert (compared["pairs"] == 1).all()
    assert len(costs(seen, CACHE_METRICS)) == 4
    assert len(found.of("trie").measures) == 3
    assert found.of("none").measures.empty
    assert found.measures.equals(run_costs(tmp_path, release, **options).measures)


def test_batches_are_full() -> None:
    assert [full_batch(level) for level in (1, 2, 3, 4, 7, 8, 32)] == [1, 2, 2, 4, 4, 8, 8]
