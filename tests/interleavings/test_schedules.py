"""Schedules, scenarios and how many interleavings there are: no engine is needed for them."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.interleavings import SCENARIOS, IsolationError, Schedule, Step
from analysis.interleavings.explore import multinomial
from analysis.interleavings.scenarios import select
from analysis.shortfin.cache.driver import next_token

steps = st.builds(Step, st.sampled_from("ABC"), st.sampled_from(["lookup", "acquire", "release"]))


@given(st.lists(steps))
def test_a_schedule_is_read_as_it_is_written(listed: list[Step]) -> None:
    schedule = Schedule(tuple(listed))
    assert Schedule.parse(str(schedule)) == schedule
    assert schedule.switches <= max(0, len(schedule) - 1)
    assert (schedule.switches == 0) == (len({s.request for s in listed}) <= 1)


@pytest.mark.parametrize("text", ["A", "A.", ".lookup", "A.lookup B"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(IsolationError, match=r"such as A\.acquire"):
        Schedule.parse(text)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_interleavings_are_counted_as_they_are_listed(lengths: list[int]) -> None:
    letters = [worker for worker, length in enumerate(lengths) for _ in range(length)]
    assert multinomial(lengths) == len(set(permutations(letters)))


def test_interleavings_of_two_are_binomial() -> None:
    assert multinomial([7, 7]) == math.comb(14, 7)


def test_each_scenario_has_a_description_and_schedules() -> None:
    for name, scenario in SCENARIOS.items():
        assert name == scenario.name
        assert scenario.sentence.endswith(".")
        assert 2 <= len(scenario.workers) <= 4
        names = [request.name for request in scenario.requests]
        assert len(names) == len(set(names))
        assert all(len(request.prompt) >= 1 for request in scenario.requests)
        # Every prompt fits into the pool by itself, or its failure would show nothing.
        most = max(len(request.prompt) for request in scenario.requests)
        assert -(-most // 2) <= scenario.pages


def test_scenarios_are_chosen_by_name_sharing_and_workers() -> None:
    assert select(None, "trie", (4,)) == ["churn"]
    assert set(select(None, "none", (2, 3))) < set(select(None, "trie", (2, 3)))
    assert select(["churn"], "trie", (2,)) == ["churn"]
    with pytest.raises(IsolationError, match="Unknown scenario 'nonsense'"):
        select(["nonsense"], "trie", (2,))


def test_equal_tokens_are_followed_by_equal_ones() -> None:
    assert next_token([1, 2, 3]) == next_token((1, 2, 3))
    assert len({next_token(range(n)) for n in range(50)}) > 40
