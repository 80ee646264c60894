"""What is minimised still fails, and nothing of it can be removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analysis.core.minimise import fewest, smallest

NUMBERS = st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=30)


@given(NUMBERS, st.data())
def test_of_a_monotone_failure_exactly_what_is_needed_is_left(items, data):
    needed = data.draw(st.lists(st.sampled_from(items), unique=True, min_size=1))
    tested = []

    def fails(kept):
        tested.append(kept)
        return set(needed) <= set(kept)

    assert fewest(items, fails) == [item for item in items if item in needed]
    assert all(tested)


@given(NUMBERS, st.integers(2, 7), st.data())
def test_of_any_failure_the_result_fails_and_is_1_minimal(items, divisor, data):
    remainder = sum(items) % divisor  # not monotone

    def fails(kept):
        return sum(kept) % divisor == remainder

    left = fewest(items, fails)
    assert fails(left)
    assert left
    for at in range(len(left)):
        fewer = left[:at] + left[at + 1 :]
        assert not fewer or not fails(fewer)


@given(NUMBERS)
def test_what_is_left_is_repaired_before_it_is_tested(items):
    def remake(kept, _):
        return sorted(kept)

    left = fewest(items, lambda kept: kept == sorted(kept) and max(items) in kept, remake)
    assert left == [max(items)]


@given(st.integers(0, 20), st.integers(0, 500), st.data())
def test_the_smallest_number_is_found_in_few_tests(least, more, data):
    known = least + more
    threshold = data.draw(st.integers(least, known))
    tested = []

    def fails(number):
        tested.append(number)
        return number >= threshold

    assert smallest(least, known, fails) == threshold
    assert all(least <= number < known for number in tested)
    assert len(tested) <= (more + 1).bit_length()


@given(st.integers(1, 20), st.integers(0, 60), st.sets(st.integers(0, 80)))
def test_of_any_numbers_one_that_fails_is_found(least, more, failing):
    known = least + more
    found = smallest(least, known, failing.__contains__)
    assert found == known or found in failing
    assert least <= found <= known
