"""Tests and intervals over engines, against values known by counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.stats.bounds import wilson
from analysis.stats.clustered import (
    ASSUMED_ICC,
    Rate,
    engines_needed,
    engines_to_reach,
    gone,
    icc,
    permutation,
    rate,
    relative_change,
    share,
    sign_flip,
)

whole = st.lists(st.integers(-20, 20), min_size=1, max_size=9)


@given(whole)
def test_the_sign_flip_test_counts_every_pattern_of_signs(values: list[int]) -> None:
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    expected = float(np.mean([one >= abs(sum(values)) for one in sums]))
    assert sign_flip(values) == pytest.approx(expected)
    assert sign_flip([value + 0.0 for value in values]) == pytest.approx(expected)
    assert sign_flip([value / 7 for value in values]) == pytest.approx(expected)


@pytest.mark.parametrize(("engines", "p"), [(1, 1.0), (3, 0.25), (6, 2**-5), (12, 2**-11)])
def test_no_spread_is_no_certainty(engines: int, p: float) -> None:
    assert sign_flip([5] * engines) == pytest.approx(p)
    assert sign_flip([0.5] * engines) == pytest.approx(p)
    assert sign_flip([5] * engines + [0]) == pytest.approx(p)


def test_of_many_real_differences_signs_are_drawn_and_p_is_never_0() -> None:
    assert 0 < sign_flip([0.3] * 40) <= 1e-4
    assert sign_flip([0.3, -0.3] * 20) == 1.0
    assert sign_flip([0, 0]) == 1.0


def test_the_permutation_test_against_all_relabellings() -> None:
    # Equal sizes: then it is the plain test of the means. The larger three of six on one side.
    p = permutation([0, 1, 2, 3, 4, 5], [8] * 6, [False] * 3 + [True] * 3)
    assert p == pytest.approx(2 / 20)
    assert permutation([0] * 6, [8] * 6, [False] * 3 + [True] * 3) == 1.0
    assert math.isnan(permutation([0, 1], [8, 8], [False, True]))


def test_the_permutation_test_sees_what_is_there() -> None:
    failed, sizes = [0] * 8 + [4, 5, 3, 4, 6, 4, 5, 4], [8] * 16
    assert permutation(failed, sizes, [False] * 8 + [True] * 8) == pytest.approx(2e-4, abs=2e-4)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=2, max_size=12))
def test_a_rate_lies_within_its_interval(engines: list[tuple[int, int]]) -> None:
    failed = [min(k, n) for k, n in engines]
    found = rate(failed, [n for _, n in engines])
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.by_engine == (len(engines) >= 5)
    if not found.by_engine:
        assert (found.low, found.high) == wilson(sum(failed), sum(n for _, n in engines))


def test_the_intraclass_correlation_of_clumps_and_of_chance() -> None:
    assert icc([8, 0, 8, 0], [8] * 4) == pytest.approx(1.0)
    assert icc([4, 4, 4, 4], [8] * 4) == 0
    assert math.isnan(icc([0, 0], [8, 8]))
    assert math.isnan(icc([1, 0], [1, 1]))
    rng = np.random.default_rng(0)
    drawn = rng.binomial(20, rng.beta(0.3 * 4, 0.7 * 4, 4000))
    assert icc(drawn.tolist(), [20] * 4000) == pytest.approx(0.2, abs=0.02)


def test_few_failures_do_not_show_that_requests_are_independent() -> None:
    none = rate([0] * 12, [32] * 12)
    assert none.icc_used == ASSUMED_ICC
    assert 0.05 < none.high < 0.2  # 0 of 384 independent requests would allow 1%
    many = rate([16] * 12, [32] * 12)
    assert many.icc_used == 0
    alone = rate([0] * 12, [1] * 12)
    assert alone.high == pytest.approx(1 - 0.025 ** (1 / 12))


def _rate(failed: int, engines: int = 12) -> Rate:
    return rate([failed] * engines, [32] * engines)


def test_shares_include_the_uncertainty_of_the_denominator() -> None:
    little, much = gone(_rate(2), _rate(0)), gone(_rate(20), _rate(0))
    assert little.value == much.value == 1
    assert little.low < much.low < 1
    assert much.high == 1
    # Exactly, also where a root would be found to nine places only.
    uneven = [19, 22, 3, 26, 15, 25, 20, 13, 24, 25, 14, 5]
    uneven += [19, 6, 29, 23, 14, 29, 8, 11, 21, 21, 9, 22]
    assert gone(rate(uneven, [32] * 24), _rate(0, 24)).high == 1
    half = share(_rate(12), _rate(2), _rate(20))
    assert half.value == pytest.approx(0.5)
    assert 0 < half.low < 0.5 < half.high < 1
    # Remaining failures are credited to no fix.
    assert share(_rate(12), _rate(12), _rate(20)).value == 0
    assert math.isnan(share(_rate(2), None, _rate(0)).value)
    assert math.isnan(gone(_rate(2, 4), _rate(0, 4)).low)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 32), min_size=5, max_size=12), st.data())
def test_a_share_lies_within_its_interval(first: list[int], data: st.DataObject) -> None:
    second = [data.draw(st.integers(0, 32)) for _ in first]
    sizes = [32] * len(first)
    found = gone(rate(first, sizes), rate(second, sizes))
    if sum(first):
        assert found.low <= found.value + 1e-6
        assert found.value - 1e-6 <= found.high <= 1
    else:
        assert math.isnan(found.value)


def test_a_change_of_a_measured_amount() -> None:
    found = relative_change([10, 12, 11, 9, 10], [5, 6, 5.5, 4.5, 5])
    assert (found.value, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    loose = relative_change([10, 12, 11, 9, 10], [5, 14, 5.5, 9, 5])
    assert loose.low < loose.value < loose.high
    assert math.isnan(relative_change([0, 0], [1, 1]).value)


def test_how_many_engines_a_test_takes() -> None:
    # 2^(1 - k) times the number of tests must fall below 5%.
    assert [engines_to_reach(tests) for tests in (1, 2, 51)] == [6, 7, 11]
    assert engines_needed(10, 0.1, tests=51) == 11
    assert engines_needed(1, 2) > engines_needed(2, 2) >= 6
    with pytest.raises(ValueError, match="cannot be shown"):
        engines_needed(0, 1)


@pytest.mark.parametrize(("mean", "spread"), [(2.0, 2.5), (1.0, 2.0)])
def test_the_engines_that_are_needed_find_the_difference(mean: float, spread: float) -> None:
    needed = engines_needed(mean, spread)
    rng = np.random.default_rng(0)
    drawn = np.round(rng.normal(mean, spread, (200, needed)))
    found = np.mean([sign_flip(row) < 0.05 for row in drawn])
    assert found > 0.7  # 80% are meant, and fewer than 70% of 200 come in 0.1% of trials
