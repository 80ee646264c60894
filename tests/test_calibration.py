"""The claims of each procedure hold what they promise, on engines whose truth is known.

Reduced by default; `make test SLOW=1` adds the full size. Bounds allow for the number of runs: a
procedure whose true rate is what docs/statistics.md wants fails less than once in 1,000 times.
"""

from __future__ import annotations

import calibration
import numpy as np
import pytest
from calibration import CAUSE, FULL, GRIDS, ICCS, NOTHING, QUICK, STORIES
from scipy import stats as scipy_stats

from analysis.stats_evictions import EQUIVALENT

SIZES = [pytest.param(1, id="reduced"), pytest.param(10, id="full", marks=pytest.mark.slow)]
icc = pytest.mark.parametrize("icc", ICCS)
size = pytest.mark.parametrize("size", SIZES)


def at_most(share: float, wanted: float, runs: int) -> bool:
    """Tell whether a share of so many runs fits a true one of at most `wanted`."""
    return share * runs <= scipy_stats.binom.ppf(0.999, runs, wanted)


def at_least(share: float, wanted: float, runs: int) -> bool:
    return share * runs >= scipy_stats.binom.ppf(0.001, runs, wanted)


@icc
@size
@pytest.mark.parametrize(("engines", "requests"), [(6, 8), (8, 32), (QUICK, 32), (FULL, 32)])
def test_intervals_of_rates_cover(icc: float, size: int, engines: int, requests: int) -> None:
    rng, runs = np.random.default_rng(0), 100 * size
    for p in (0.01, 0.05, 0.3, 0.9):
        held = calibration.rate_coverage(rng, icc, engines, requests, p, runs)
        assert at_least(held, 0.93, runs), p


@icc
@size
@pytest.mark.parametrize("grid", GRIDS)
def test_a_constant_rate_is_seldom_called_a_matter_of_concurrency(
    icc: float, size: int, grid: str
) -> None:
    rng, runs = np.random.default_rng(0), 25 * size
    for p in (0.05, 0.3):
        told = calibration.between_concurrencies(rng, icc, grid, p, p, runs)
        assert at_most(told, 0.025, runs), p
    assert calibration.between_concurrencies(rng, 0.0, grid, 0.02, 0.6, 10) > 0.5


@icc
@size
def test_two_settings_that_do_alike_are_seldom_told_apart(icc: float, size: int) -> None:
    rng, runs = np.random.default_rng(0), 200 * size
    for engines in (6, QUICK):
        for p in (0.05, 0.3):
            assert at_most(calibration.pair_wrong(rng, p, icc, engines, runs), 0.05, runs)


@icc
@size
def test_intervals_of_shares_cover(icc: float, size: int) -> None:
    rng, runs = np.random.default_rng(0), 40 * size
    for engines in (6, QUICK):
        for true in (0.0, 0.5, 0.97):
            held = calibration.share_coverage(rng, true, 0.3, icc, engines, runs)
            assert at_least(held, 0.93, runs), true


@icc
@size
@pytest.mark.parametrize("story", STORIES)
def test_a_notebook_of_51_hypotheses_seldom_makes_a_false_claim(
    icc: float, size: int, story: str
) -> None:
    rng, runs = np.random.default_rng(0), 6 * size
    assert at_most(calibration.verdicts_wrong(rng, story, icc, QUICK, runs), 0.05, runs)


def test_a_notebook_finds_what_is_worth_finding() -> None:
    rng = np.random.default_rng(0)
    assert calibration.verdict_power(rng, CAUSE, "supported", 0.0, QUICK, 20) > 0.8
    assert calibration.verdict_power(rng, CAUSE, "effect", 0.1, QUICK, 20) > 0.8
    assert calibration.verdict_power(rng, NOTHING, "refuted", 0.0, FULL, 10) > 0.8


@pytest.mark.slow
@icc
def test_a_notebook_of_full_size_seldom_makes_a_false_claim(icc: float) -> None:
    rng, runs = np.random.default_rng(1), 100
    for story in STORIES:
        assert at_most(calibration.verdicts_wrong(rng, story, icc, FULL, runs), 0.05, runs)


@icc
@size
def test_evictions_without_an_effect_seldom_explain_anything(icc: float, size: int) -> None:
    rng, runs = np.random.default_rng(0), 4 * size
    # A third of the engines of the plan: a sign-flip test of fewer is quicker.
    claimed = calibration.eviction_words(rng, icc, 1.0, runs, 2)
    assert at_most(calibration.any_of(claimed, "explain", "rarer"), 0.05, runs)


@pytest.mark.slow
@icc
def test_where_nothing_goes_with_evictions_seldom_anything_is_claimed(icc: float) -> None:
    rng, runs = np.random.default_rng(0), 40
    claimed = calibration.eviction_words(rng, icc, 1.0, runs, 2, confounded=False)
    assert at_most(calibration.any_of(claimed, "explain", "rarer", "accompany"), 0.05, runs)


@pytest.mark.slow
@icc
def test_evictions_with_an_effect_seldom_merely_accompany(icc: float) -> None:
    rng, runs = np.random.default_rng(0), 60
    claimed = calibration.eviction_words(rng, icc, EQUIVALENT, runs)
    assert at_most(calibration.any_of(claimed, "accompany"), 0.05, runs)


@size
def test_costs_that_are_none_are_seldom_claimed(size: int) -> None:
    rng, runs = np.random.default_rng(0), 10 * size
    assert at_most(calibration.cost_claims(rng, 1.0, 12, 2, runs)[0], 0.05, runs)
    assert calibration.cost_claims(rng, 1.15, 12, 2, 5)[1] > 0.5
