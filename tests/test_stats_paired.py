"""Pairs of engines that got the same requests: counts and estimates."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import request_row, trial_row

from analysis.runs.store import to_frame
from analysis.stats.paired import pair, paired, spread, together


def frame(*rows: tuple[int, bool, bool]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"concurrency": 4, "repeat": trial, "request_id": str(i), "first": a, "second": b,
             "first_rejected": False, "second_rejected": False}
            for i, (trial, a, b) in enumerate(rows)
        ]
    )  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.booleans()), min_size=1, max_size=40)
)
def test_what_is_counted_adds_up(rows: list[tuple[int, bool, bool]]) -> None:
    result = paired(frame(*rows))
    assert result.pairs == len(rows)
    assert result.first_failed - result.second_failed == result.net == sum(result.nets)
    assert result.only_first - result.only_second == result.net
    assert result.only_first + result.only_second <= result.pairs
    assert len(result.engines) == len({trial for trial, *_ in rows})


def test_engines_count_and_not_their_requests() -> None:
    # Two of three engines hang early and fail all that follows; the third is no different.
    hung = paired(frame(*[(trial, trial != 1, False) for trial in range(3) for _ in range(20)]))
    assert hung.net == 40
    assert hung.p_value == pytest.approx(0.5)
    alike = [(trial, i % 2 == 0, False) for trial in range(3) for i in range(20)]
    # All agree to the last request: three engines still allow no more than this.
    assert paired(frame(*alike)).p_value == pytest.approx(0.25)
    assert paired(frame(*alike[:20])).p_value == 1.0
    six = [(trial, i % 2 == 0, False) for trial in range(6) for i in range(20)]
    assert paired(frame(*six)).p_value == pytest.approx(2**-5)
    backwards = paired(frame(*[(trial, b, a) for trial, a, b in six]))
    assert backwards.p_value == pytest.approx(2**-5)
    assert backwards.net < 0


def test_questions_about_one_treatment_add_up_engine_by_engine() -> None:
    one = paired(frame((0, True, False), (1, True, False)))
    other = paired(frame((1, True, False), (2, False, True)))
    assert together(one, other) == (1, 2, -1)
    assert together(one, None) == (1, 1)


def test_the_spread_of_engines_is_at_least_that_of_chance() -> None:
    assert spread([4, 4, 4], 9.0) == 3.0
    assert spread([0, 20, 0], 1.0) > 10


def test_pairs_are_the_same_request_in_both_settings() -> None:
    trials = [
        trial_row(trial_id="a", repeat=0, concurrency=4),
        trial_row(trial_id="b", repeat=0, concurrency=4, treatments=["x"]),
        trial_row(trial_id="c", repeat=1, concurrency=4),
    ]
    requests = [
        request_row(trial_id="a", request_id="r0", outcome="wrong"),
        request_row(trial_id="a", request_id="r1", outcome="rejected"),
        request_row(trial_id="b", request_id="r0", outcome="ok"),
        request_row(trial_id="b", request_id="r1", outcome="ok"),
        request_row(trial_id="c", request_id="r0", outcome="wrong"),
    ]
    tables = to_frame("requests", requests), to_frame("trials", trials)
    found = pair(*tables, (), ("x",))
    columns = ["request_id", "first", "second", "first_rejected"]
    # A refused request is an outcome: it stays, and has not failed.
    assert found[columns].to_numpy().tolist() == [
        ["r0", True, False, False],
        ["r1", False, False, True],
    ]
    assert (paired(found).first_rejected, paired(found).second_rejected) == (1, 0)
    counted = pair(*tables, (), ("x",), failures=("wrong", "rejected"))
    assert len(counted) == 2
    assert counted["first"].all()
    assert pair(*tables, (), ("y",)).empty
