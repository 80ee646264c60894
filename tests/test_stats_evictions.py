"""Evictions and failures, on synthetic data whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import NEWEST, REPORTED

from analysis.stats.dose_response import (
    EvictionContrast,
    eviction_bins,
    eviction_fit,
    eviction_rates,
    evictions_contrast,
)
from analysis.studies.evictions.estimates import EvictionVerdict, decide_evictions
from analysis.studies.evictions.words import evictions_in_words, odds_cells

LEVELS = (2, 4, 8, 16)


def sweep(
    evicts: Callable[[int, np.random.Generator], int],
    fails: Callable[[int, int], float],
    *,
    trials_each: int = 20,
    each: int = 12,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trials at several concurrencies: evictions by level, failures by level and evictions."""
    rng = np.random.default_rng(seed)
    trials, requests = [], []
    for level in LEVELS:
        for repeat in range(trials_each):
            trial_id = f"c{level}-{repeat}"
            trials.append({"trial_id": trial_id, "concurrency": level})
            for _ in range(each):
                evicted = evicts(level, rng)
                wrong = rng.random() < fails(level, evicted)
                requests.append(
                    {"trial_id": trial_id, "evictions_during": evicted, "submitted_s": 0.0,
                     "latency_s": 1.0, "outcome": "wrong" if wrong else "ok"}
                )  # fmt: skip
    frame = pd.DataFrame(trials).assign(
        release=REPORTED,
        prefix_sharing="trie",
        device="local-task",
        page_count=64,
        workload="mixed",
    )
    return pd.DataFrame(requests), frame


def verdict_of(requests: pd.DataFrame, trials: pd.DataFrame) -> EvictionVerdict:
    [verdict] = decide_evictions([evictions_contrast(requests, trials)])
    assert verdict is not None
    return verdict


def more_with_concurrency(level: int, rng: np.random.Generator) -> int:
    return int(rng.poisson(level / 8))


def test_evictions_that_cause_failures_are_detected() -> None:
    requests, trials = sweep(
        more_with_concurrency, lambda level, evicted: 0.05 + 0.4 * (evicted > 0)
    )
    verdict = verdict_of(requests, trials)
    assert verdict.contrast.interval()[0] > 2
    assert verdict.contrast.p_value < 0.001
    assert verdict.status == "explain"
    assert not verdict.equivalent
    [fit] = eviction_fit(requests, trials)
    assert fit.low > 1
    words = evictions_in_words(requests, trials)
    assert "evictions explain failures beyond what the settings do" in words
    assert "| explain failures |" in words


def test_evictions_that_are_only_correlated_are_no_cause() -> None:
    requests, trials = sweep(
        lambda level, rng: int(rng.random() < level / 20), lambda level, evicted: level / 20,
        trials_each=40,
    )  # fmt: skip
    verdict = verdict_of(requests, trials)
    assert verdict.contrast.crude_p_value < 0.001
    assert verdict.contrast.crude_odds_ratio > 1.5
    low, high = verdict.contrast.interval()
    assert low < 1 < high
    assert verdict.status == "accompany"
    words = evictions_in_words(requests, trials)
    assert "merely accompany" in words
    assert "adjusted for 2 claims), but at equal concurrency (offered 2, 4, 8 and 16" in words
    assert "(95%: " in words
    assert "the interval is over engines" in words


def contrast(p_value: float, crude: float, error: float) -> EvictionContrast:
    strata = pd.DataFrame({"concurrency": [4], "without_failures": [3], "informative": [True]})
    return EvictionContrast(strata, 1.1, p_value, 60, 2.0, crude, 0.0, error)


def test_what_one_configuration_shows_is_not_shown_among_four() -> None:
    # At 95% its interval reaches 1.43, at 98.75% 1.59; and 0.02 is not 0.05 / 8.
    wide, unsure = contrast(0.5, 0.0001, 0.18), contrast(0.5, 0.02, 0.05)
    explains = contrast(0.02, 0.0001, 0.3)
    for one, word in ((wide, "accompany"), (unsure, "accompany"), (explains, "explain")):
        assert [v.status for v in decide_evictions([one]) if v] == [word]
        several = decide_evictions([one, None, *[contrast(0.9, 0.9, 1.0)] * 3])
        assert several[1] is None
        assert {v.claims for v in several if v} == {8}
        assert {v.status for v in several if v} == {"undecided"}
    # One of fewer than five engines risks no claim, and costs the others nothing.
    few = contrast(math.nan, math.nan, math.nan)
    assert [v.status for v in decide_evictions([wide, few]) if v] == ["accompany", "undecided"]


def test_the_printed_interval_supports_the_claim() -> None:
    for verdict in decide_evictions([contrast(0.5, 0.0001, 0.1)] * 2):
        assert verdict is not None
        assert (verdict.status, verdict.claims) == ("accompany", 4)
        cells = odds_cells(verdict)
        assert cells["odds ratio"] == "1.1 (97.5%: 0.79 to 1.3)"
        assert cells["engines"] == "60"
        assert cells["p, adjusted"] == "p = 1"


def test_a_correlation_in_one_release_is_not_shown_for_two() -> None:
    requests, trials = sweep(
        lambda level, rng: int(rng.random() < level / 20), lambda level, evicted: level / 20,
        trials_each=24, seed=3,
    )  # fmt: skip
    assert "merely accompany failures" in evictions_in_words(requests, trials)
    again = trials.assign(trial_id="again-" + trials["trial_id"], release=NEWEST)
    both = (
        pd.concat([requests, requests.assign(trial_id="again-" + requests["trial_id"])]),
        pd.concat([trials, again]),
    )
    assert "merely accompany failures" not in evictions_in_words(*both)


def test_a_small_pool_that_fails_for_other_reasons_is_no_effect_of_evictions() -> None:
    pools = []
    for pages, often, fails in ((256, 0.05, 0.1), (40, 0.7, 0.5)):
        requests, trials = sweep(
            lambda level, rng, often=often: int(rng.random() < often),
            lambda level, evicted, fails=fails: fails,
            seed=pages,
        )
        ids = f"p{pages}-"
        pools.append(
            (
                requests.assign(trial_id=ids + requests["trial_id"]),
                trials.assign(trial_id=ids + trials["trial_id"], page_count=pages),
            )
        )
    requests, trials = (pd.concat(part, ignore_index=True) for part in zip(*pools, strict=True))
    regardless = evictions_contrast(requests, trials.assign(page_count=64))
    assert regardless is not None
    assert regardless.interval()[0] > 1.5
    assert "evictions explain failures" not in evictions_in_words(requests, trials)


def test_too_little_data_gets_no_verdict() -> None:
    requests, trials = sweep(
        more_with_concurrency,
        lambda level, evicted: 0.1 + 0.2 * (evicted > 0),
        trials_each=1,
        each=4,
    )
    assert "is undecided" in evictions_in_words(requests, trials)


def test_a_missing_difference_is_not_reported_as_correlation() -> None:
    requests, trials = sweep(
        lambda level, rng: int(rng.random() < level / 20), lambda level, evicted: level / 20,
        trials_each=3,
    )  # fmt: skip
    verdict = verdict_of(requests, trials)
    assert verdict.status == "undecided"
    assert not verdict.equivalent
    words = evictions_in_words(requests, trials)
    assert "merely accompany them is undecided" in words
    assert "engines would decide it (80% power)" in words


def test_no_evictions_and_no_failures_are_said_as_they_are() -> None:
    none, trials = sweep(lambda level, rng: 0, lambda level, evicted: 0.3, trials_each=2)
    assert "no page was evicted" in evictions_in_words(none, trials)
    assert "explain none" in evictions_in_words(none, trials)
    fine, trials = sweep(more_with_concurrency, lambda level, evicted: 0.0, trials_each=2)
    assert "no request failed" in evictions_in_words(fine, trials)
    rejected = fine.assign(outcome="rejected")
    assert "no request was accepted" in evictions_in_words(rejected, trials)


@pytest.mark.parametrize(
    ("evicted", "failed", "note"),
    [
        ([0, 1, 2, 3], [False] * 4, "no request failed"),
        ([0, 1, 2, 3], [True] * 4, "every request failed"),
        ([0, 0, 0, 0], [True, False] * 2, "no request met an eviction"),
        ([2, 2, 2, 2], [True, False] * 2, "every request met 2 evictions"),
        ([0, 1, 2, 3], [False, False, True, True], "at least as many"),
        ([0, 1, 2, 3], [True, True, False, False], "at most as many"),
    ],
)
def test_no_fit_where_there_is_none(evicted: list[int], failed: list[bool], note: str) -> None:
    trials = pd.DataFrame({"trial_id": ["c"], "release": ["r"], "prefix_sharing": ["trie"]})
    requests = pd.DataFrame(
        {"trial_id": "c", "evictions_during": evicted,
         "outcome": ["wrong" if one else "ok" for one in failed]}
    )  # fmt: skip
    [fit] = eviction_fit(requests, trials)
    assert note in fit.note
    assert math.isnan(fit.odds_ratio)


def test_the_fit_recovers_the_slope_it_was_drawn_with() -> None:
    slope, base = 0.3, -1.5
    requests, trials = sweep(
        lambda level, rng: int(rng.integers(0, 10)),
        lambda level, evicted: 1 / (1 + math.exp(-(base + slope * evicted))),
        trials_each=40,
    )
    [fit] = eviction_fit(requests, trials)
    assert fit.low < math.exp(slope) < fit.high
    assert fit.clustered
    middle, low, high = fit.curve([0, 5])
    assert (low < middle).all()
    assert (middle < high).all()
    assert middle[0] == pytest.approx(1 / (1 + math.exp(-base)), abs=0.06)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_every_number_has_one_bin(numbers: list[int]) -> None:
    bins = eviction_bins(numbers)
    for number in numbers:
        assert sum(first <= number <= last for first, last in bins) == 1
    assert bins == sorted(bins)
    assert len(bins) <= 8
    assert all(last == 0 for first, last in bins if first == 0)


def test_rates_count_every_accepted_request_once() -> None:
    requests, trials = sweep(more_with_concurrency, lambda level, evicted: 0.3, trials_each=3)
    requests.loc[:9, "outcome"] = "rejected"
    rates = eviction_rates(requests, trials)
    assert rates["n"].sum() == len(requests) - 10
    assert rates["failures"].sum() == (requests["outcome"] == "wrong").sum()
    assert ((rates["low"] <= rates["rate"]) & (rates["rate"] <= rates["high"])).all()
