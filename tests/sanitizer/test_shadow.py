"""The shadow's hashes stand for prefixes, however these were built up."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.sanitizer.sequence import Sequence
from analysis.sanitizer.shadow import (
    NO_WRITER,
    NOTHING,
    PADDING,
    UNKNOWN,
    Shadow,
    mix,
    mix_one,
    prefix_hashes,
)

ALL = 2**64 - 1
tokens_of = st.integers(0, 2**31 - 1)
prompts = st.lists(tokens_of, max_size=40)
few = st.lists(st.integers(0, 2), max_size=8)


def ints(tokens):
    return np.array(tokens, dtype=np.int64)


def hashes_of(tokens):
    return prefix_hashes(ints(tokens)).tolist()


@given(prompts, st.integers(0, 10**6))
def test_one_token_is_mixed_as_many_are(tokens, first):
    one_by_one = [mix_one(token, first + place) for place, token in enumerate(tokens)]
    assert mix(ints(tokens), first).tolist() == one_by_one


@given(prompts, st.data())
def test_prefixes_are_the_same_in_any_pieces(tokens, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    pieces, base = [], 0
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        pieces += prefix_hashes(ints(tokens[start:end]), start, base).tolist()
        base = pieces[-1] if pieces else 0
    assert pieces == hashes_of(tokens)
    total, singly = 0, []
    for place, token in enumerate(tokens):
        total = total + mix_one(token, place) & ALL
        singly.append(total)
    assert singly == pieces


@given(st.lists(st.one_of(prompts, few), max_size=8))
def test_only_equal_prefixes_share_a_hash(sequences):
    seen = {}
    for tokens in sequences:
        for length, value in enumerate(hashes_of(tokens), start=1):
            assert seen.setdefault(value, tokens[:length]) == tokens[:length]
    assert not seen.keys() & {int(NOTHING), int(UNKNOWN), int(PADDING)}


@given(few, few)
def test_the_order_and_the_place_of_tokens_count(one, other):
    ours, theirs = hashes_of(one), hashes_of(other)
    for length in range(1, min(len(one), len(other)) + 1):
        same = one[:length] == other[:length]
        assert (ours[length - 1] == theirs[length - 1]) == same


@given(prompts, prompts)
def test_a_sequence_has_the_hashes_of_its_tokens(prompt, answer):
    sequence = Sequence(0, "a", tuple(prompt))
    sequence.restart(ints(prompt), 0)
    for token in answer:
        sequence.append(token)
    whole = hashes_of(prompt + answer)
    assert sequence.hashes.tolist() == whole
    assert sequence.length == len(whole)
    assert sequence.last == (whole[-1] if whole else 0)
    for position in range(len(whole) + 1):
        assert sequence.hash_before(position) == (whole[position - 1] if position else 0)


@given(prompts, prompts, st.data())
def test_a_sequence_that_restarts_forgets_what_followed(before, after, data):
    sequence = Sequence(0, "a", None)
    sequence.restart(ints(before), 0)
    first = data.draw(st.integers(0, len(before)))
    sequence.restart(ints(after), first)
    assert sequence.hashes.tolist() == hashes_of(before[:first] + after)
    sequence.append(5)
    assert sequence.hashes.tolist() == hashes_of([*before[:first], *after, 5])


def test_a_sequence_grows_without_bound():
    sequence = Sequence(0, "a", None)
    tokens = list(range(1, 1000))
    sequence.restart(ints(tokens[:100]), 0)
    for token in tokens[100:]:
        sequence.append(token)
    assert sequence.hashes.tolist() == hashes_of(tokens)


def test_pages_begin_unwritten_or_unknown():
    shadow = Shadow(3, 2, [1])
    assert shadow.content.tolist() == [*[NOTHING] * 2, *[UNKNOWN] * 2, *[NOTHING] * 2]
    assert set(shadow.writer.tolist()) == {NO_WRITER}
    assert not shadow.tainted.any()


@given(st.integers(1, 5), st.permutations(range(4)), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_copy_equals_the_page_and_changes_no_other(stride, pages, seed):
    rng = np.random.default_rng(seed)
    shadow = Shadow(4, stride, [])
    arrays = (shadow.content, shadow.writer, shadow.position, shadow.invocation, shadow.tainted)
    for array in arrays:
        array[:] = rng.integers(0, 2 if array.dtype == bool else 1000, len(array))
    before = [array.reshape(4, stride).copy() for array in arrays]
    source, target, *others = pages
    shadow.copy(source, target)
    for array, was in zip(arrays, before, strict=True):
        now = array.reshape(4, stride)
        assert (now[target] == was[source]).all()
        assert (now[[source, *others]] == was[[source, *others]]).all()


def test_only_one_page_is_forgotten():
    shadow = Shadow(3, 2, [0, 2])
    shadow.content[2:4], shadow.writer[:], shadow.tainted[:] = 77, 7, True
    shadow.forget(1)
    assert shadow.content.tolist() == [UNKNOWN] * 6
    assert shadow.writer.tolist() == [7, 7, NO_WRITER, NO_WRITER, 7, 7]
    assert shadow.tainted.tolist() == [True, True, False, False, True, True]
    shadow.forget(3)


def test_a_newly_allocated_page_counts_as_unwritten():
    shadow = Shadow(3, 2, [0, 1])
    shadow.content[2] = 77
    shadow.allocate(1)
    shadow.allocate(-1)
    assert shadow.content.tolist() == [UNKNOWN, UNKNOWN, 77, *[NOTHING] * 3]
