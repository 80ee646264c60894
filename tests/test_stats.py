"""Statistics against reference values, and against runs whose truth is known."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NEWEST, REPORTED
from synthetic import make_run, reported_pattern

from analysis.runs.store import OUTCOMES
from analysis.stats import bounds
from analysis.stats import rates as stats
from analysis.stats.configurations import varying


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
    for k, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert bounds.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in bounds.wilson(0, 0))
    with pytest.raises(ValueError, match="between 0 and n"):
        bounds.wilson(3, 2)


@given(n=st.integers(1, 300), data=st.data())
def test_wilson_holds_the_rate_and_stays_within_bounds(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = bounds.wilson(k, n)
    assert -1e-12 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1 + 1e-12


def test_holm_against_a_worked_example() -> None:
    assert bounds.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bounds.holm([]) == []


def test_how_many_requests_a_question_needs() -> None:
    assert bounds.requests_to_see(0.01) == 299
    assert bounds.requests_to_see(0.001) == 2995


def test_failure_rates_of_a_known_run() -> None:
    run = reported_pattern()
    rates = stats.failure_rates(run.requests, run.trials)
    assert len(rates) == 12
    rates = rates.set_index(["release", "prefix_sharing", "concurrency"])
    row = rates.loc[(REPORTED, "none", 8)]
    assert (row["n"], row["failures"], row["rejected"]) == (96, 36, 0)
    assert row["rate"] == pytest.approx(36 / 96)
    # Four engines are too few: the interval is by request, and says so.
    assert (row["low"], row["high"]) == pytest.approx(bounds.wilson(36, 96))
    assert not row["by_engine"]
    assert (row["trials"], row["trials_failed"]) == (4, 4)
    row = rates.loc[(NEWEST, "none", 8)]
    assert (row["n"], row["failures"], row["rejected"], row["rate"]) == (96, 0, 48, 0.0)
    assert row["high"] == pytest.approx(bounds.wilson(0, 48)[1])
    assert row["rejected_share"] == 0.5
    assert rates.loc[(REPORTED, "trie", 8), "trials_ended_badly"] == 1


def test_engines_that_fail_as_a_whole_widen_the_interval_of_a_rate() -> None:
    alike = {(REPORTED, "none", 8): {"wrong": 40, "ok": 120}}
    spread, clumped = (make_run(alike, trials=10, spread=how) for how in (True, False))
    [mixed] = stats.failure_rates(spread.requests, spread.trials).to_dict("records")
    [whole] = stats.failure_rates(clumped.requests, clumped.trials).to_dict("records")
    assert mixed["rate"] == whole["rate"] == 0.25
    assert whole["icc"] > 0.8
    assert mixed["icc"] == 0
    assert mixed["by_engine"]
    assert whole["high"] - whole["low"] > 1.5 * (mixed["high"] - mixed["low"])


def test_rejections_are_reported_with_the_requests_at_once() -> None:
    run = make_run({(NEWEST, "none", 8): {"ok": 20, "rejected": 20}}, trials=5)
    [row] = stats.failure_rates(run.requests, run.trials).to_dict("records")
    assert (row["at_once"], row["rejected"]) == (4, 20)


def test_trials_are_counted_apart_from_requests() -> None:
    run = make_run({(REPORTED, "none", 4): {"wrong": 4, "ok": 12}}, trials=4, spread=False)
    [row] = stats.failure_rates(run.requests, run.trials).to_dict("records")
    assert (row["failures"], row["trials_failed"], row["trials"]) == (4, 1, 4)


def test_trials_without_requests_and_rejections_only() -> None:
    run = make_run({(REPORTED, "none", 1): {}, (NEWEST, "none", 8): {"rejected": 8}}, trials=2)
    empty, refused = stats.failure_rates(run.requests, run.trials).to_dict("records")
    assert (empty["n"], empty["trials"]) == (0, 2)
    assert math.isnan(empty["rate"])
    assert (refused["n"], refused["rejected"], refused["rejected_share"]) == (8, 8, 1.0)
    assert math.isnan(refused["low"])


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(OUTCOMES), st.integers(0, 6)),
    st.dictionaries(st.sampled_from(OUTCOMES), st.integers(0, 6)),
)
def test_every_request_is_counted_once(first: dict[str, int], second: dict[str, int]) -> None:
    run = make_run({(REPORTED, "none", 1): first, (REPORTED, "none", 2): second}, trials=3)
    rates = stats.failure_rates(run.requests, run.trials)
    total = sum(first.values()) + sum(second.values())
    assert rates["n"].sum() == total
    ok = sum(each.get(name, 0) for each in (first, second) for name in ("ok", "cancelled"))
    assert rates["failures"].sum() + rates["rejected"].sum() + ok == total
    if total:
        counts = stats.outcome_counts(run.requests, run.trials)
        assert counts[list(OUTCOMES)].to_numpy().sum() == total


def test_latency_is_that_of_completed_requests() -> None:
    run = make_run({(REPORTED, "none", 4): {"ok": 10, "wrong": 10, "timeout": 5, "rejected": 5}})
    [row] = stats.latency_summary(run.requests, run.trials).to_dict("records")
    done = run.requests[run.requests["outcome"].isin(["ok", "wrong"])]["latency_s"]
    assert row["n"] == 20
    assert row["p50"] == pytest.approx(done.median())
    assert row["p50"] <= row["p95"] <= row["p99"] <= done.max()
    nothing = stats.latency_summary(run.requests[:0], run.trials)
    assert nothing.empty
    assert "p99" in nothing


def test_what_varies_between_trials() -> None:
    trials = reported_pattern().trials
    assert varying(trials) == ["release", "prefix_sharing"]
    assert varying(trials[:1]) == []
    assert isinstance(trials, pd.DataFrame)
