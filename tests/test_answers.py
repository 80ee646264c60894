"""The words must say what the numbers say: runs whose truth is known."""

from __future__ import annotations

from dataclasses import replace

from support import NEWEST, REPORTED
from synthetic import make_run, reported_pattern

from analysis.runs.store import to_frame
from analysis.studies.reproduce.words import answer_in_a_sentence, answer_in_words

KEY = (REPORTED, "none")


def test_failing_from_four_on() -> None:
    run = make_run(
        {
            (*KEY, 1): {"ok": 24},
            (*KEY, 2): {"ok": 24},
            (*KEY, 4): {"ok": 36, "wrong": 12},
            (*KEY, 8): {"ok": 60, "wrong": 30, "engine_died": 6},
        }
    )
    words = answer_in_words(run)
    assert words.startswith(f"**shortfin {REPORTED}, prefix sharing none: yes.** No request failed")
    assert "No request failed at 1 and 2 concurrent requests (0 of 48; 95% interval up to" in words
    assert "The first failures are at 4: 25% at 4 (12 of 48, 15% to 39%), 38% at 8 (36 of" in words
    assert "by request only and too narrow, for there are fewer than five engines" in words
    assert "Requests failed more often at 4 or more than below (33% against 0%" in words
    assert "permutation test over 8 against 8 engines, p = 0.0002)." in words
    assert "undecided" not in words
    assert answer_in_a_sentence(run) == (
        "Yes, 0% of requests failed below 4 concurrent ones (0 of 48) and 33% from 4 on "
        "(48 of 144; p = 0.0002)."
    )


def test_a_constant_rate_is_no_matter_of_concurrency() -> None:
    # At a rate of 20% something fails in most engines that are asked much, and in few of others.
    run = make_run(
        {(*KEY, 1): {"ok": 8, "wrong": 2}, (*KEY, 32): {"ok": 256, "wrong": 64}}, trials=10
    )
    assert "more than below is undecided (20% against 20%" in answer_in_words(run)


def test_nothing_failing_claims_no_more_than_the_interval() -> None:
    run = make_run({(*KEY, 1): {"ok": 24}, (*KEY, 4): {"ok": 48}})
    words = answer_in_words(run)
    assert "No request failed at 1 and 4 concurrent requests (0 of 72)" in words
    assert "a true failure rate of up to 14% would still fit (95%, by request" in words
    assert "permutation" not in words
    bounds = (
        "with 95% confidence at most 4.1% of requests fail if requests are independent, and at most"
        " 31% of engines have a request that fails (0 of 8 did)."
    )
    assert words.startswith(f"**shortfin {REPORTED}, prefix sharing none: no request failed.** No")
    assert f"(0 of 72). W{bounds[1:]}" in words
    assert answer_in_a_sentence(run) == (
        f"No request failed at 1 and 4 concurrent requests (0 of 72); {bounds}"
    )


def test_an_engine_without_an_accepted_request_bounds_nothing() -> None:
    run = make_run({(*KEY, 1): {"ok": 24}, (*KEY, 8): {"rejected": 24}})
    assert "(0 of 24, 24 rejected); with 95% confidence at most 12% of requests" in (
        answer_in_a_sentence(run)
    )
    assert "(0 of 4 did)" in answer_in_a_sentence(run)


def test_everything_failing_is_no_matter_of_concurrency() -> None:
    run = make_run({(*KEY, 1): {"wrong": 14}, (*KEY, 8): {"wrong": 30, "timeout": 10}})
    words = answer_in_words(run)
    assert "Every request failed, at every concurrency: 100% at 1 (14 of 14" in words
    assert "more often" not in words
    assert answer_in_a_sentence(run) == (
        "Every request failed at 1 and 8 concurrent requests (54 of 54)."
    )


def test_too_little_data_is_said_to_be_too_little() -> None:
    run = make_run({(*KEY, 1): {"ok": 4}, (*KEY, 4): {"ok": 3, "wrong": 1}})
    words = answer_in_words(run)
    assert "more fail at 4 or more than below is undecided (25% against 0%" in words
    assert "engines on each side would decide it (80% power)" in words
    assert "more often" not in words
    assert "none: undecided.**" in words
    assert answer_in_a_sentence(run).startswith("Undecided, 0% of requests failed below")


def test_few_engines_are_not_many_requests() -> None:
    run = make_run({(*KEY, 1): {"ok": 30}, (*KEY, 4): {"ok": 15, "wrong": 15}}, trials=2)
    words = answer_in_words(run)
    assert "more often" not in words
    assert "is undecided (50% against 0%; permutation test over 2 against 2 engines" in words


def test_failing_alone_and_less_often_under_load() -> None:
    run = make_run(
        {(*KEY, 1): {"ok": 10, "wrong": 30}, (*KEY, 4): {"ok": 38, "wrong": 2}}, trials=10
    )
    words = answer_in_words(run)
    assert "Requests failed already at 1, the lowest concurrency that was run" in words
    assert "Requests failed less often at 4 or more than below" in words
    assert "none: no, less often.**" in words


def test_rejections_stand_apart() -> None:
    run = make_run({(*KEY, 4): {"ok": 48}, (*KEY, 8): {"ok": 48, "rejected": 48}})
    words = answer_in_words(run)
    assert "No request failed at 4 and 8 concurrent requests (0 of 96)" in words
    assert "Rejected, and not counted: 48 of 96 when offered 8." in words
    assert "(0 of 96, 48 rejected)" in answer_in_a_sentence(run)
    refused = make_run({(*KEY, 8): {"rejected": 4}})
    assert "All 4 requests were rejected, so there is no failure rate." in answer_in_words(refused)
    assert "none: nothing was accepted.**" in answer_in_words(refused)
    assert answer_in_a_sentence(refused) == "No request was accepted."


def test_what_ran_is_named_before_what_was_offered() -> None:
    run = make_run({(*KEY, n): {"ok": 16, "rejected": 4 * n - 16} for n in (8, 16, 32)})
    assert answer_in_a_sentence(run).startswith(
        "No request failed at 4 concurrent requests"
        " (offered 8, 16 and 32: ran 4; 0 of 48, 176 rejected); with 95%"
    )
    words = answer_in_words(run)
    assert "No request failed at 4 concurrent requests (offered 8, 16 and 32: ran 4; 0 of" in words
    assert "at 8" not in words
    every = make_run({(*KEY, 8): {"wrong": 16, "rejected": 16}})
    assert "Every request failed at 4 concurrent requests (offered 8: ran 4; 16 of 16" in (
        answer_in_a_sentence(every)
    )
    assert "at every concurrency: 100% at 4 (offered 8; 16 of 16" in answer_in_words(every)


def test_failures_where_less_ran_than_was_offered_are_named_and_tested_apart() -> None:
    run = make_run(
        {
            (*KEY, 2): {"ok": 7, "wrong": 1},
            (*KEY, 4): {"ok": 10, "wrong": 6},
            (*KEY, 8): {"ok": 4, "wrong": 12, "rejected": 16},
        }
    )
    words = answer_in_words(run)
    assert "75% at 4 (offered 8; 12 of 16" in words
    assert "against 4 engines, without what refused requests (offered 8: ran 4)" in words
    sentence = answer_in_a_sentence(run)
    assert "(6 of 16, 16 rejected; without what refused requests: offered 8: ran 4" in sentence
    # Nothing of what was offered from 4 on ran in full: that is not to say that nothing was taken.
    less = make_run({(*KEY, 2): {"ok": 8}, (*KEY, 8): {"ok": 12, "wrong": 4, "rejected": 16}})
    words = answer_in_words(less)
    assert "The first failures are at 4 (offered 8): 25% at 4 (offered 8; 4 of 16" in words
    assert "From 4 on no engine ran as many requests at once as it was offered, so" in words


def test_requests_that_were_sent_again_did_not_run_at_once_either() -> None:
    run = make_run({(*KEY, 8): {"ok": 32}})
    late = run.requests.groupby("trial_id").cumcount() >= 4
    submitted = run.requests["submitted_s"].where(~late, 1000.0)
    again = replace(run, requests=run.requests.assign(submitted_s=submitted, retries=1 * late))
    assert "at 4 concurrent requests (offered 8: ran 4; 0 of 32)" in answer_in_a_sentence(again)


def test_exposures_through_which_a_setting_acts_are_reported() -> None:
    run = make_run({(*KEY, 4): {"ok": 24}, (REPORTED, "trie", 4): {"wrong": 24}}, trials=6)
    invocations, events = [], []
    for trial, sharing in zip(run.trials["trial_id"], run.trials["prefix_sharing"], strict=True):
        free = 200 if sharing == "none" else 50
        invocations.append({"invocation_id": 0, "trial_id": trial, "phase": "decode", "rows": 4,
                        "batch_size": 4, "request_ids": ["r0"], "seq": 1, "end_seq": 2,
                        "t_s": 0.0, "duration_s": 0.01})  # fmt: skip
        events.append(
            {"seq": 0, "trial_id": trial, "t_s": 0.0, "kind": "acquire", "free_pages": free}
        )
    recorded = replace(
        run, invocations=to_frame("invocations", invocations), events=to_frame("events", events)
    )
    words = answer_in_words(recorded)
    assert "prefix sharing trie failed more often than prefix sharing none" in words
    assert (
        "The exposure that it acts through changed with it"
        " (most pages in use at the same time: 206, then 56)." in words
    )


def test_one_side_only_is_not_compared() -> None:
    run = make_run({(*KEY, 4): {"ok": 8, "wrong": 8}})
    assert (
        "No request was accepted below 4, so the two sides cannot be compared."
        in answer_in_words(run)
    )
    assert answer_in_a_sentence(run) == "50% of requests failed at 4 concurrent requests (8 of 16)."


def test_configurations_are_told_apart_and_compared_where_they_differ_in_one_respect() -> None:
    words = answer_in_words(reported_pattern())
    assert words.count("**shortfin") == 3
    assert words.count(": yes.**") == 2
    assert "prefix sharing trie failed more often than prefix sharing none (56%, 80 of 144" in words
    # What refuses requests at 8 is compared at 4 only, where it ran as many as were offered.
    assert f"shortfin {NEWEST} failed less often than shortfin {REPORTED} (0%, 0 of" in words
    assert "Exposure not recorded." in words
    assert words.count("adjusted for 4 tests (Holm)") == 4
    assert "1 of 16 trials did not end well." in words
    sentence = answer_in_a_sentence(reported_pattern())
    failed = "of 192 requests failed (more from 4 on: yes);"
    assert sentence == (  # of many configurations the counts only
        f"shortfin {REPORTED}, prefix sharing none: 48 {failed}"
        f" shortfin {REPORTED}, prefix sharing trie: 92 {failed}"
        f" shortfin {NEWEST}, prefix sharing none: 0 of 144 requests failed."
    )
    same_release = make_run({(*KEY, 4): {"ok": 9}, (REPORTED, "trie", 4): {"ok": 9}})
    assert answer_in_a_sentence(same_release).startswith("Prefix sharing none: no request failed")
    assert "whether prefix sharing trie and prefix sharing none differ is undecided" in (
        answer_in_words(same_release)
    )


def test_a_run_without_anything() -> None:
    assert answer_in_words(make_run({})) == "The run holds no trials, so there is nothing to say."
    assert answer_in_a_sentence(make_run({})) == "The run holds no trials."
    crashed = make_run({(*KEY, 1): {}}, trials=2, status={(*KEY, 1): "crashed"})
    assert "No request was recorded, so there is no failure rate. 1 of 2 trials" in answer_in_words(
        crashed
    )
