"""Costs of known size are found, and nothing is found where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from support import REPORTED
from synthetic_cost import cost_run

from analysis.runs.store import to_frame
from analysis.studies.cost.compare import comparisons, costs, pairs_needed
from analysis.studies.cost.measures import ALL, CACHE_METRICS, METRICS, measure, measure_cache

LOCK = "lock-cache"


def compared(factors: Mapping[str, float], **options: Any) -> pd.DataFrame:
    return costs(measure(*cost_run({"untreated": 1.0, **factors}, **options)))


def row(frame: pd.DataFrame, arm: str, metric: str = "latency_s") -> dict[Any, Any]:
    [found] = frame[(frame["arm"] == arm) & (frame["metric"] == metric)].to_dict("records")
    return found


def test_a_treatment_that_costs_ten_percent_is_found_in_every_time() -> None:
    found = compared({LOCK: 1.0, ALL: 1.1})
    for metric, truth in (
        ("ttft_s", 1.1),
        ("inter_token_s", 1.1),
        ("latency_s", 1.1),
        ("tokens_per_s", 1 / 1.1),
    ):
        one = row(found, ALL, metric)
        assert one["pairs"] == 12
        assert one["low"] < truth < one["high"]
        assert one["verdict"] == "costs"
        assert one["high"] / one["low"] < 1.06
    assert row(found, ALL, "peak_rss_bytes")["verdict"] == "no difference shown"


def test_one_that_costs_nothing_is_not_blamed_and_its_interval_says_how_sure_that_is() -> None:
    free = row(compared({LOCK: 1.0, ALL: 1.1}), LOCK)
    assert free["verdict"] == "no difference shown"
    assert 0.95 < free["low"] < 1 < free["high"] < 1.05


def test_one_that_saves_is_told_from_one_that_costs() -> None:
    found = compared({LOCK: 0.8}, memory={LOCK: 1.5})
    assert row(found, LOCK)["verdict"] == "saves"
    assert row(found, LOCK, "tokens_per_s")["verdict"] == "saves"
    assert row(found, LOCK, "peak_rss_bytes")["verdict"] == "costs"
    assert row(found, LOCK, "peak_rss_bytes")["estimate"] == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize(("repeats", "known"), [(1, False), (2, True)])
def test_too_few_trials_are_called_so(repeats: int, known: bool) -> None:
    found = row(compared({LOCK: 3.0}, repeats=repeats), LOCK)
    assert found["pairs"] == 2 * repeats
    assert found["estimate"] == pytest.approx(3, rel=0.1)
    assert math.isnan(found["low"]) != known
    assert (found["verdict"] == "too few trials") != known


def test_pairs_with_a_request_lost_on_either_side_are_left_out() -> None:
    lost = ("ok", "engine_died")
    outcomes = {("untreated", 0): lost, (LOCK, 1): lost, (ALL, 0): ("wrong",)}
    found = compared({LOCK: 1.0, ALL: 1.0}, outcomes=outcomes)
    assert (row(found, LOCK)["pairs"], row(found, LOCK)["left_out"]) == (8, 4)
    assert (row(found, ALL)["pairs"], row(found, ALL)["left_out"]) == (10, 2)


def test_an_arm_that_never_answers_has_no_cost() -> None:
    found = compared({LOCK: 1.0}, outcomes={(LOCK, n): ("engine_died",) for n in range(6)})
    one = row(found, LOCK)
    assert (one["pairs"], one["left_out"]) == (0, 12)
    assert math.isnan(one["estimate"])
    assert one["verdict"] == "too few trials"


def test_costs_that_differ_between_concurrencies_do_not_widen_the_interval() -> None:
    requests, trials = cost_run({"untreated": 1.0, LOCK: 1.0}, noise=0.01, repeats=8)
    measures = measure(requests, trials)
    half = (measures["arm"] == LOCK) & (measures["concurrency"] == 8)
    measures.loc[half, "latency_s"] *= 1.44
    found = row(costs(measures), LOCK)
    assert found["estimate"] == pytest.approx(1.2, rel=0.02)
    assert found["high"] / found["low"] < 1.03
    for level, estimate in ((4, 1.0), (8, 1.44)):
        apart = row(costs(measures[measures["concurrency"] == level]), LOCK)
        assert apart["estimate"] == pytest.approx(estimate, rel=0.02)


def test_shares_are_compared_by_their_difference() -> None:
    requests, trials = cost_run(
        {"untreated": 1.0, LOCK: 1.0, ALL: 1.0}, hits={"untreated": 12, LOCK: 12, ALL: 9}
    )
    found = costs(measure_cache(requests, trials, to_frame("events", [])), CACHE_METRICS)
    assert row(found, ALL, "hit_rate")["estimate"] == pytest.approx(-0.1)
    assert row(found, ALL, "hit_rate")["verdict"] == "costs"
    assert row(found, LOCK, "hit_rate")["estimate"] == 0
    assert row(found, LOCK, "hit_rate")["verdict"] == "no difference shown"


def test_many_arms_without_a_cost_are_seldom_blamed_together() -> None:
    # 10 arms: uncorrected, four in ten sweeps would blame one of them.
    arms = dict.fromkeys("abcdefghij", 1.0)
    blamed = 0
    for seed in range(25):
        measures = _noise(arms, seed)
        found = costs(measures, METRICS[2:3])
        blamed += bool((found["verdict"] != "no difference shown").any())
    assert blamed <= 5  # of 25: about 1 is expected, 6 or more come in 0.1% of such trials


def test_intervals_hold_what_they_promise_with_few_pairs() -> None:
    held = [
        one["low"] < 1.1 < one["high"]
        for seed in range(100)
        for one in costs(_noise({"a": 1.1}, seed, repeats=3), METRICS[2:3]).to_dict("records")
    ]
    assert sum(held) >= 88  # of 100: 95 are expected, fewer than 88 come in 0.1% of such trials


def test_pairs_that_agree_to_the_last_digit_are_no_more_certain_than_their_number() -> None:
    measures = _noise({"a": 1.0}, 0, repeats=3)
    measures["latency_s"] = np.where(measures["arm"] == "a", 1.1, 1.0)
    one = row(costs(measures, METRICS[2:3]), "a")
    assert one["p_value"] == pytest.approx(2**-5)


def test_other_comparisons_of_the_notebook_are_allowed_for() -> None:
    measures = _noise({"a": 1.3}, 0, repeats=6)
    alone = row(costs(measures, METRICS[2:3]), "a")
    among = row(costs(measures, METRICS[2:3], among=50), "a")
    assert among["p_adjusted"] == pytest.approx(50 * alone["p_adjusted"])
    assert comparisons(measures) == len(METRICS)


@pytest.mark.parametrize("truth", [1.0, 1.02])
def test_the_pairs_that_are_needed_settle_it_in_eight_of_ten_cases(truth: float) -> None:
    needed = int(pairs_needed(0.05, truth, 0.05))
    rng = np.random.default_rng(0)
    drawn = rng.normal(math.log(truth), 0.05, (400, needed))
    reach = scipy_stats.t.ppf(0.975, needed - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(needed)
    settled = float(np.mean(drawn.mean(axis=1) + reach < math.log1p(0.05)))
    assert 0.7 < settled < 0.9


def _noise(arms: Mapping[str, float], seed: int, repeats: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "release": REPORTED, "device": "local-task", "prefix_sharing": "trie",
            "page_count": 256, "workload": "mixed", "concurrency": level, "repeat": repeat,
            "treatments": (arm,), "arm": arm, "comparable": True,
            "latency_s": factor * math.exp(rng.normal(0, 0.05)),
        }
        for repeat in range(repeats)
        for level in (4, 8)
        for arm, factor in {"untreated": 1.0, **arms}.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


@settings(deadline=None, max_examples=20)
@given(
    scale=st.floats(0.01, 100),
    factors=st.lists(st.floats(0.5, 2), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_units_and_the_order_of_trials_do_not_matter(
    scale: float, factors: list[float], seed: int
) -> None:
    measures = _noise({f"arm{n}": factor for n, factor in enumerate(factors)}, seed)
    one = costs(measures, METRICS[2:3])
    measures["latency_s"] *= scale
    other = costs(measures.sample(frac=1, random_state=seed), METRICS[2:3])
    for frame in (one, other):
        assert (frame["low"] <= frame["estimate"]).all()
        assert (frame["estimate"] <= frame["high"]).all()
        assert (frame["p_value"] <= frame["p_adjusted"]).all()
    keys = ["arm", "estimate", "low", "high", "p_adjusted"]
    a, b = (frame.sort_values("arm")[keys].reset_index(drop=True) for frame in (one, other))
    pd.testing.assert_frame_equal(a, b, rtol=1e-6)


def test_pairs_needed_grow_with_the_spread_and_the_nearness() -> None:
    # (1.96 + 0.84)^2 times the squared quotient of spread and distance, for 80% power.
    assert pairs_needed(0.05, 1.0, 0.05) == math.ceil((2.8016 * 0.05 / math.log(1.05)) ** 2) + 2
    assert pairs_needed(0.1, 1.0, 0.05) > pairs_needed(0.05, 1.0, 0.05)
    assert pairs_needed(0.05, 1.04, 0.05) > pairs_needed(0.05, 1.0, 0.05)
    assert math.isfinite(pairs_needed(0.05, 1.05, 0.05))
    assert math.isnan(pairs_needed(math.nan, 1.0, 0.05))
