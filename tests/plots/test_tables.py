"""Tables for readers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from support import REPORTED
from synthetic import make_run, reported_pattern, request_row, trial_row

from analysis.plots import (
    asked_again,
    checks_table,
    facts,
    failed_trials,
    rates_table,
    wrong_answers,
)
from analysis.plots.tables import outcomes_table
from analysis.runs.store import Run, join_runs, to_frame
from analysis.stats.configurations import arms_in_full, labelled


def run_of(*requests: dict[str, object]) -> Run:
    empty = {
        name: to_frame(name, []) for name in ("invocations", "events", "snapshots", "findings")
    }
    rows = [request_row(request_id=str(i), outcome="wrong", **r) for i, r in enumerate(requests)]
    trials, frame = to_frame("trials", [trial_row()]), to_frame("requests", rows)
    return Run(Path("x"), {}, trials=trials, requests=frame, **empty)


def test_the_first_difference_is_marked_in_both_answers() -> None:
    run = run_of({"text": "6 7 8 1 1 1", "expected_text": "6 7 8 9 10", "tokens": list(range(11))})
    table = wrong_answers(run.requests, run.trials)
    assert list(table.frame["differs_at"]) == [6]
    markup = table.markup
    assert "<code>6 7 8 <mark>9 10</mark></code>" in markup
    assert "<code>6 7 8 <mark>1 1 1</mark></code>" in markup


def test_an_answer_cut_off_by_its_length_is_compared_with_as_much() -> None:
    run = run_of({"text": "6 7 9", "expected_text": "6 7 8 9 10 11", "tokens": [1] * 5})
    [row] = wrong_answers(run.requests, run.trials).frame.to_dict("records")
    assert (row["right"], row["answered"], row["differs_at"]) == ("6 7 8", "6 7 9", 4)


def test_an_answer_that_ends_too_early_misses_something() -> None:
    run = run_of({"text": "6", "expected_text": "6 7", "tokens": [1, 2, 3]})
    assert "<code>6<mark>∅</mark></code>" in wrong_answers(run.requests, run.trials).markup


def test_token_ids_tell_apart_what_text_cannot() -> None:
    run = run_of(
        {"text": "6 7", "expected_text": None, "tokens": [3, 9], "reference_tokens": [3, 4]},
        {
            "text": "6 7",
            "expected_text": "6 7",
            "tokens": [5, 9],
            "reference_tokens": [5, 4],
            "prompt": "b",
        },
    )
    frame = wrong_answers(run.requests, run.trials).frame
    assert list(frame["right"]) == ["3 4", "5 4"]
    assert list(frame["answered"]) == ["3 9", "5 9"]
    assert list(frame["differs_at"]) == [1, 1]


def test_a_wrong_answer_without_anything_recorded_is_still_a_row() -> None:
    run = run_of({"text": None, "expected_text": None, "tokens": None, "reference_tokens": None})
    assert len(wrong_answers(run.requests, run.trials)) == 1


def test_wrong_answers_come_from_the_lowest_concurrency_and_several_families() -> None:
    run = reported_pattern()
    table = wrong_answers(run.requests, run.trials)
    assert len(table) == 3
    assert list(table.frame["concurrency"]) == [2, 2, 2]
    assert table.frame["family"].nunique() == 3
    assert table.frame["prompt"].nunique() == 3
    again = wrong_answers(run.requests.sample(frac=1, random_state=1), run.trials)
    assert again.frame.equals(table.frame)


def test_what_users_wrote_cannot_become_markup() -> None:
    run = run_of({"prompt": "<script>'\"", "text": "<b>", "expected_text": "<i>"})
    markup = wrong_answers(run.requests, run.trials).markup
    assert "<script" not in markup
    assert "<b>" not in markup
    assert "<script" not in facts({"<script>": "<script>"}).markup


def test_no_wrong_answers_are_good_news() -> None:
    run = make_run({(REPORTED, "none", 1): {"ok": 4}})
    table = wrong_answers(run.requests, run.trials)
    assert "No answer was wrong" in table.markup
    assert "nothing to ask again" in asked_again(table.frame, []).markup


def test_asked_again_is_judged_by_the_reference_first() -> None:
    run = run_of({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "reference_tokens": None})
    frame = wrong_answers(run.requests, run.trials).frame
    answers = [
        ("a", "trie", "6 7 8 9", [6, 7, 8, 9]),
        ("b", "trie", "6 7 8 9", [6, 7]),
        ("b", "none", "6 7 8 9", [6, 7, 8, 9]),
        ("c", "none", "6 7 8 9 10 11 12", [6, 7, 8, 9]),
        ("a", "none", None, None),  # could not be asked
    ]
    table = asked_again(frame, answers)
    assert list(table.frame["right_alone"]) == [True, False, True, True, None]
    assert list(table.frame["prefix_sharing"]) == ["trie", "trie", "none", "none", "none"]
    assert "wrong, also alone" in table.markup


def test_a_right_answer_is_right_however_much_longer_it_is_than_what_was_expected() -> None:
    run = run_of(
        {"prompt": "long", "expected_text": "6 7 8", "reference_tokens": None},
        {"prompt": "short", "expected_text": "6 7 8", "reference_tokens": None},
        {"prompt": "cut", "expected_text": "6 7 8 9 10", "reference_tokens": None},
        {"prompt": "unknown", "expected_text": None, "reference_tokens": None},
    )
    frame = wrong_answers(run.requests, run.trials, count=4).frame
    answers = [
        ("long", "none", "6 7 8 9", [6, 7, 8, 9]),
        ("short", "none", "6 7", [6, 7]),
        ("cut", "none", "6 7 8 9 ", [6, 7, 8, 9]),
        ("unknown", "none", "6 7", [6, 7]),
    ]
    table = asked_again(frame, answers, max_new_tokens=7)
    assert list(table.frame["right_alone"]) == [True, False, True, None]
    assert "the right answer is not known" in table.markup


def test_trials_that_did_not_end_well_say_why() -> None:
    run = reported_pattern()
    table = failed_trials(run.trials)
    assert list(table.frame["trial_id"]) == [f"{REPORTED}-trie-8-0"]
    assert "engine died" in table.markup
    assert "The engine engine_died in a test." in table.markup
    good = failed_trials(run.trials[run.trials["status"] == "ok"])
    assert "All 47 trials ended well." in good.markup


def test_rates_are_shown_with_what_their_intervals_rest_on() -> None:
    run = reported_pattern()
    table = rates_table(run.requests, run.trials)
    assert len(table) == 12
    assert "25% (15% to 39%)" in table.markup
    assert "4 of 4" in table.markup
    assert "by request only, too narrow" in table.markup
    assert REPORTED in repr(table)


def test_both_checks_have_a_column() -> None:
    run = reported_pattern()
    early = run.requests["request_id"].isin(["r36", "r37"]) & (run.requests["outcome"] == "wrong")
    table = checks_table(
        run.requests.assign(text=run.requests["text"].mask(early, "7")), run.trials
    )
    assert len(table) == 12
    row = table.frame.query(f"release == '{REPORTED}' and prefix_sharing == 'none'").iloc[2]
    assert (row["concurrency"], row["failures"], row["failures_begins"]) == (4, 12, 2)
    assert "12: 25% (15% to 39%)" in table.markup
    assert "2: 4% (1% to 14%)" in table.markup
    assert "by request where under five engines" in table.markup


def test_settings_that_differ_have_rows_of_their_own() -> None:
    plain = make_run({(REPORTED, "none", 4): {"wrong": 4}})
    fixed = make_run({(REPORTED, "none", 4): {"ok": 4}}, treatments=["all"])
    table = checks_table(*join_runs([plain, fixed]))
    assert list(table.frame["failures"]) == [4, 0]
    assert "untreated" in table.markup


@given(st.lists(st.permutations("abcd").flatmap(
    lambda names: st.integers(0, 4).map(lambda n: tuple(names[:n]))
), min_size=1, max_size=8, unique=True))  # fmt: skip
def test_arms_have_names_that_differ_and_say_what_they_are(arms: list[tuple[str, ...]]) -> None:
    rows = [trial_row(trial_id=str(n), treatments=list(arm)) for n, arm in enumerate(arms)]
    names = labelled(to_frame("trials", rows))["treatments"].tolist()
    assert len(set(names)) == len(arms)
    several = [arm for arm in arms if len(arm) > 1]
    for arm, name in zip(arms, names, strict=True):
        if name.startswith("all "):
            whole = max(arms, key=len)
            assert all(set(other) <= set(whole) for other in several)
            left_out = set(whole) - set(arm)
            assert name in {f"all {len(whole)} treatments", *(f"all but {x}" for x in left_out)}
            assert len(left_out) <= 1
        else:
            assert name == (" + ".join(arm) or "untreated")


def test_arms_with_one_left_out_each_have_short_names() -> None:
    arms = [(), ("a", "b", "c"), ("b", "c"), ("a", "c"), ("a",), ("a", "b")]
    rows = [trial_row(trial_id=str(n), treatments=list(arm)) for n, arm in enumerate(arms)]
    trials = to_frame("trials", rows)
    assert labelled(trials)["treatments"].tolist() == [
        "untreated", "all 3 treatments", "all but a", "all but b", "a", "all but c",
    ]  # fmt: skip
    assert arms_in_full(trials) == "All 3 treatments: a + b + c."


def test_the_outcomes_of_each_setting_are_counted_once() -> None:
    run = make_run({(REPORTED, "none", 4): {"ok": 5, "wrong": 2, "rejected": 1}})
    frame = outcomes_table(run.requests, run.trials).frame
    assert frame[["ok", "wrong", "rejected"]].sum().tolist() == [5, 2, 1]
    assert "timeout" not in frame
    empty = trial_row(trial_id="z", concurrency=1)
    trials = pd.concat([run.trials, to_frame("trials", [empty])], ignore_index=True)
    frame = outcomes_table(run.requests, trials).frame
    assert frame[["concurrency", "ok", "wrong", "rejected"]].to_numpy().tolist() == [
        [1, 0, 0, 0], [4, 5, 2, 1],
    ]  # fmt: skip
