"""The prompt families: deterministic, exact, split, and right by independent recomputation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.workloads.prompts import (
    ALPHABET,
    FAMILIES,
    LANES_FROM,
    MAX_LENGTH,
    PERIOD,
    draw,
    draw_many,
    is_held_out,
    minimum_length,
    reported,
    shared_prefix,
)

cases = st.fixed_dictionaries(
    {
        "family": st.sampled_from(FAMILIES),
        "seed": st.integers(0, 2**32 - 1),
        "length": st.integers(7, MAX_LENGTH),
        "n": st.integers(1, 24),
        "split": st.sampled_from(["any", "train", "held_out"]),
    }
)


def make(case):
    rng = np.random.default_rng(case["seed"])
    return draw(case["family"], rng, length=case["length"], n=case["n"], split=case["split"])


def go_on(prompt: str, n: int, tokens: int) -> str:
    """Work out the continuation from the prompt's text alone."""
    if ">" in prompt:
        listed, cue = prompt[: prompt.index(">") + 1], prompt[prompt.index(">") + 1 :]
        if not cue:
            place = 0
        else:
            places = [i for i in range(len(listed)) if (listed * 2)[i:].startswith(cue)]
            assert len(places) == 1, "the cue names one place only"
            place = places[0] + len(cue)
        return (listed * 30)[place : place + n]
    width = 2 if prompt[0].isalpha() else 4
    lanes = PERIOD // width if tokens >= LANES_FROM else 1
    whole = prompt[: prompt.rindex(" ")].split(" ")
    letters = "abcdefghijklmnopqrstuvwxyz"
    if width == 2:
        values = [letters.index(item) for item in whole]
    else:
        values = [int(item) for item in whole]
    known = len(values)
    while len(values) < known + n + 2:
        values.append(2 * values[-lanes] - values[-2 * lanes])
    items = [letters[v % 26] for v in values] if width == 2 else [str(v) for v in values]
    text = " ".join(items) + " "
    assert text.startswith(prompt)
    return text[len(prompt) : len(prompt) + n]


@given(cases)
@settings(max_examples=200, deadline=None)
def test_a_prompt_has_its_length_and_its_one_continuation(case):
    prompt = make(case)
    assert prompt.tokens == case["length"]
    assert set(prompt.prompt + prompt.continuation) <= set(ALPHABET)
    assert prompt.continuation == go_on(prompt.prompt, case["n"], prompt.tokens)


@given(cases)
@settings(max_examples=50, deadline=None)
def test_the_same_seed_gives_the_same_prompt(case):
    assert make(case) == make(case)


@given(cases)
@settings(max_examples=100, deadline=None)
def test_the_split_is_kept_by_every_longer_prompt(case):
    prompt = make(case)
    held_out = is_held_out(prompt.prompt)
    if case["split"] != "any":
        assert held_out == (case["split"] == "held_out")
    # Training learns from whole sequences: none of them may begin with a held-out prompt.
    assert is_held_out(prompt.prompt + prompt.continuation) == held_out


@given(st.integers(0, 2**32 - 1), st.integers(60, MAX_LENGTH))
@settings(max_examples=50, deadline=None)
def test_two_letters_are_enough_to_know_the_place_in_a_list(seed, length):
    prompt = draw("recall", np.random.default_rng(seed), length=length).prompt
    listed = prompt[: prompt.index(">") + 1]
    pairs = [listed[i : i + 2] for i in range(len(listed) - 1)]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_shortest_prompts_in_both_splits(family):
    rng = np.random.default_rng(0)
    for split in ("train", "held_out"):
        prompt = draw(family, rng, length=minimum_length(family), split=split)
        assert prompt.tokens == minimum_length(family)
        assert len(prompt.continuation) == 15


@given(st.integers(0, 2**32 - 1), st.sampled_from([32, 48]), st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_members_share_their_prefix_and_differ_in_their_answers(seed, prefix, members):
    rng = np.random.default_rng(seed)
    prompts = shared_prefix(rng, members=members, prefix_tokens=prefix, length=80)
    assert len({prompt.prompt[: prefix - 1] for prompt in prompts}) == 1
    assert len({prompt.prompt for prompt in prompts}) == members
    assert len({prompt.continuation for prompt in prompts}) == members
    for prompt in prompts:
        assert prompt.tokens == 80
        assert prompt.continuation == go_on(prompt.prompt, 15, prompt.tokens)


def test_the_reported_prompt_is_held_out():
    assert reported().prompt == "1 2 3 4 5 "
    assert reported(15).continuation == "6 7 8 9 10 11 1"
    assert is_held_out(reported().prompt)


def test_many_prompts_are_distinct_and_take_the_families_in_turn():
    prompts = draw_many(np.random.default_rng(3), 80, split="held_out")
    assert len({prompt.prompt for prompt in prompts}) == 80
    assert [prompt.family for prompt in prompts[:8]] == [*FAMILIES, *FAMILIES]


def test_the_same_last_page_can_have_different_answers():
    """No family can be answered from its last 16 tokens alone: here is a pair that shows it."""
    one, other = "abc def ghi jkl mno pqr stu>", "xbc def ghi jkl mno pqr stu>"
    assert go_on(one, 3, 29) != go_on(other, 3, 29)


@pytest.mark.parametrize(
    ("family", "length", "n"),
    [("count", 4, 15), ("recall", 121, 15), ("dates", 20, 15), ("count", 9, 0)],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(family, length, n):
    with pytest.raises(ValueError, match=r"\.$"):
        draw(family, np.random.default_rng(0), length=length, n=n)


def test_a_descent_that_cannot_go_on_is_refused():
    with pytest.raises(ValueError, match="has a continuation of 2000 characters"):
        draw("descend", np.random.default_rng(0), length=7, n=2000)


def test_a_shared_prefix_without_room_is_refused():
    with pytest.raises(ValueError, match="are too few for a member's own words"):
        shared_prefix(np.random.default_rng(0), members=2, length=36)


def test_prompts_import_without_the_engine():
    code = (
        "import sys, analysis.workloads.prompts, analysis.model\n"
        "heavy = {'torch', 'iree', 'shortfin', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
