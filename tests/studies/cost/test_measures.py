"""What a trial took, from requests whose times are known."""

from __future__ import annotations

import pandas as pd
import pytest
from support import REPORTED
from synthetic import request_row, trial_row
from synthetic_cost import MIB, TOKENS, cost_run

from analysis.runs.store import to_frame
from analysis.studies.cost.measures import ALL, arm_name, measure, measure_cache
from analysis.studies.cost.plan import arms
from analysis.treatments import TREATMENTS, fixes


def test_times_are_of_the_median_request_without_the_first_of_each_client() -> None:
    requests, trials = cost_run({"untreated": 1.0}, concurrency=(4,), repeats=1, noise=0)
    [row] = measure(requests, trials).to_dict("records")
    pace = 4**0.3
    assert row["ttft_s"] == pytest.approx(0.02 * pace)
    assert row["inter_token_s"] == pytest.approx(0.01 * pace)
    assert row["latency_s"] == pytest.approx(0.16 * pace)
    assert row["tokens_per_s"] == pytest.approx(4 * TOKENS / (0.16 * pace))
    assert row["peak_rss_bytes"] == 200 * MIB
    assert (row["asked"], row["answered"], row["rejected"], row["failed"]) == (8, 8, 0, 0)
    assert row["comparable"]
    assert row["arm"] == "untreated"


def test_a_client_that_asks_once_is_timed_by_that() -> None:
    requests, trials = cost_run({"untreated": 1.0}, concurrency=(4,), repeats=1, noise=0)
    once = requests[requests["position"] == 0]
    [row] = measure(once, trials).to_dict("records")
    assert row["latency_s"] == pytest.approx(5 * 0.16 * 4**0.3)


@pytest.mark.parametrize(
    ("outcome", "comparable", "counted"),
    [
        ("wrong", True, "wrong"),
        ("rejected", True, "rejected"),
        ("engine_died", False, "failed"),
        ("empty", False, "failed"),
        ("timeout", False, "failed"),
        ("error", False, "failed"),
    ],
)
def test_a_trial_that_lost_a_request_is_not_compared(
    outcome: str, comparable: bool, counted: str
) -> None:
    requests, trials = cost_run(
        {"untreated": 1.0},
        concurrency=(4,),
        repeats=1,
        outcomes={("untreated", 0): ("ok", "ok", "ok", outcome)},
    )
    [row] = measure(requests, trials).to_dict("records")
    assert row["comparable"] == comparable
    assert row[counted] == 1
    assert row["answered"] == (8 if outcome == "wrong" else 7)


def test_a_trial_that_ended_badly_or_answered_nothing_is_not_compared() -> None:
    trials = to_frame("trials", [trial_row(trial_id="a", status="hung"), trial_row(trial_id="b")])
    requests = to_frame("requests", [request_row(trial_id="a")])
    rows = measure(requests, trials)
    assert list(rows["comparable"]) == [False, False]
    assert rows["latency_s"].isna().tolist() == [False, True]
    assert rows["peak_rss_bytes"].isna().all()


def test_one_token_has_no_time_between_tokens() -> None:
    trials = to_frame("trials", [trial_row()])
    requests = to_frame("requests", [request_row(tokens=[6], ttft_s=1.0, latency_s=1.0)])
    [row] = measure(requests, trials).to_dict("records")
    assert pd.isna(row["inter_token_s"])
    assert row["tokens_per_s"] == pytest.approx(1.0)


def test_hits_and_pages_come_from_what_was_recorded() -> None:
    requests, trials = cost_run(
        {"untreated": 1.0}, concurrency=(4,), repeats=2, hits={"untreated": 10}
    )
    first, second = trials["trial_id"]
    events = to_frame(
        "events",
        [
            {"seq": n, "trial_id": first, "t_s": n / 1e9, "kind": "acquire", "free_pages": free}
            for n, free in enumerate((200, 180, 220))
        ],
    )
    rows = measure_cache(requests, trials, events).set_index("trial_id")
    assert rows["hit_rate"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert rows.loc[first, "peak_pages"] == 256 - 180
    assert pd.isna(rows.loc[second, "peak_pages"])


def test_without_a_prefix_cache_there_is_no_hit_rate() -> None:
    requests, trials = cost_run({"untreated": 1.0}, repeats=1)
    assert measure_cache(requests, trials, to_frame("events", []))["hit_rate"].isna().all()


@pytest.mark.parametrize("sharing", ["none", "trie"])
@pytest.mark.parametrize("each", [True, False])
def test_arms_have_everything_once(release: str, sharing: str, each: bool) -> None:
    found = arms(release, sharing, each=each)
    assert found[0] == ()
    assert ("lock-cache",) in found
    assert found[-1] == fixes(release, sharing)
    assert len(set(found)) == len(found)
    single = {name for names in found if len(names) == 1 for name in names}
    assert single == ({"lock-cache", *fixes(release, sharing)} if each else {"lock-cache"})
    assert single <= set(TREATMENTS)
    names = [arm_name(names, release, sharing) for names in found]
    assert len(set(names)) == len(names)
    assert (names[0], names[-1]) == ("untreated", ALL)


def test_some_fixes_are_not_all() -> None:
    some = fixes(REPORTED, "trie")[:2]
    assert arm_name(some, REPORTED, "trie") == " + ".join(some)
    assert arm_name(list(some), REPORTED, "none") != ALL
