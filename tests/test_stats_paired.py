"""Paired tests: exact p values, shares with intervals, and how many pairs a difference takes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference
from synthetic import cell_row, request_row

from analysis.stats_paired import mcnemar, pair, paired, pairs_needed
from analysis.store import to_frame

counts = st.integers(0, 60)


def frame(*rows: tuple[int, bool, bool]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"concurrency": 4, "repeat": cell, "request_id": str(i), "first": a, "second": b}
            for i, (cell, a, b) in enumerate(rows)
        ]
    )


@given(counts, counts)
def test_the_exact_test_is_that_of_statsmodels(first: int, second: int) -> None:
    known = reference([[0, first], [second, 0]], exact=True).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1.0, known))
    assert mcnemar(first, second) == mcnemar(second, first)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.booleans()), max_size=40))
def test_what_is_counted_adds_up(rows: list[tuple[int, bool, bool]]) -> None:
    if not rows:
        return
    result = paired(frame(*rows), resamples=100)
    assert result.pairs == len(rows)
    assert result.first_failed - result.second_failed == result.net
    assert result.only_first + result.only_second <= result.pairs
    if result.first_failed:
        assert result.low <= result.share <= result.high
        assert result.share <= 1
    else:
        assert math.isnan(result.share)


def test_all_gone_has_an_interval_all_the_same() -> None:
    result = paired(frame(*[(cell, True, False) for cell in range(6) for _ in range(4)]))
    assert result.share == 1
    assert 0.8 < result.low < 1
    assert result.high == 1
    assert result.p_value < 1e-6


def test_cells_that_fail_as_a_whole_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    whole = [(cell, True, cell % 2 == 0) for cell in range(6) for _ in range(10)]
    mixed = [(int(cell), True, bool(rng.random() < 0.5)) for cell in np.repeat(range(6), 10)]
    wide, narrow = paired(frame(*whole)), paired(frame(*mixed))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_an_accident_of_a_few_cells_does_not_tell() -> None:
    # Two of three engines hang early and fail all that follows; the third is no different.
    hung = [(cell, cell != 1, False) for cell in range(3) for _ in range(20)]
    result = paired(frame(*hung))
    assert result.p_value < 1e-6
    assert not result.tells(result.p_value)
    alike = [(cell, i % 2 == 0, False) for cell in range(3) for i in range(20)]
    assert paired(frame(*alike)).tells(paired(frame(*alike)).p_value)
    assert not paired(frame(*alike[:20])).tells(1e-9)  # one cell cannot agree with itself
    backwards = paired(frame(*[(cell, b, a) for cell, a, b in alike]))
    assert not backwards.tells(backwards.p_value)


def test_pairs_are_the_same_request_in_both_settings_and_accepted_there() -> None:
    cells = [
        cell_row(cell_id="a", repeat=0, concurrency=4),
        cell_row(cell_id="b", repeat=0, concurrency=4, treatments=["x"]),
        cell_row(cell_id="c", repeat=1, concurrency=4),
    ]
    requests = [
        request_row(cell_id="a", request_id="r0", outcome="wrong"),
        request_row(cell_id="a", request_id="r1", outcome="rejected"),
        request_row(cell_id="b", request_id="r0", outcome="ok"),
        request_row(cell_id="b", request_id="r1", outcome="ok"),
        request_row(cell_id="c", request_id="r0", outcome="wrong"),
    ]
    tables = to_frame("requests", requests), to_frame("cells", cells)
    found = pair(*tables, (), ("x",))
    assert found[["request_id", "first", "second"]].to_numpy().tolist() == [["r0", True, False]]
    counted = pair(*tables, (), ("x",), failures=("wrong", "rejected"))
    assert len(counted) == 2
    assert counted["first"].all()
    assert pair(*tables, (), ("y",)).empty


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.4), st.floats(0.0, 0.01))
def test_the_pairs_that_are_needed_find_the_difference(gone: float, came: float) -> None:
    needed = pairs_needed(gone, came)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(needed, [gone, came, 1 - gone - came], size=200)
    found = np.mean([mcnemar(int(a), int(b)) < 0.05 for a, b, _ in drawn])
    assert found > 0.6  # 80% by the normal approximation, of which the exact test falls short


def test_equal_shares_need_no_number() -> None:
    with pytest.raises(ValueError, match="different shares"):
        pairs_needed(0.1, 0.1)
