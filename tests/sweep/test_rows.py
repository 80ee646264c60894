"""A trial always has one row per request, whatever became of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import REPORTED

from analysis.core.jobs import read_lines
from analysis.runs.store import OUTCOMES, TRIAL_STATUS, RunWriter, load_run
from analysis.sweep.estimate import Estimate
from analysis.sweep.plan import Plan
from analysis.sweep.progress import duration
from analysis.sweep.rows import (
    Ended,
    count_outcomes,
    request_rows,
    trial_row,
)
from analysis.workloads.workload import Request, Workload

PLAN = Plan(releases=(REPORTED,), concurrency=(3,), repeats=1)
(TRIAL,) = PLAN.trials()


def record(number, outcome="ok"):
    return {"request_id": f"r{number}", "outcome": outcome, "tokens": [6, 7], "text": "67",
            "prompt_tokens": [1], "latency_s": 0.5, "submitted_s": 0.1, "ttft_s": None}  # fmt: skip


@given(
    st.integers(1, 9),
    st.sets(st.integers(0, 8)),
    st.sampled_from(TRIAL_STATUS),
    st.sampled_from(OUTCOMES),
)
def test_every_request_has_a_row_that_the_store_takes(
    tmp_path_factory, count, finished, status, outcome
):
    workload = Workload("w", tuple(Request(f"r{i}", "1 ", 2, "67") for i in range(count)))
    done = [record(i, outcome) for i in finished if i < count]
    ended = Ended(done, 1.5, status, "It went so.", 9 if status == "crashed" else None)
    rows = request_rows(TRIAL, workload, {("1 ", 2): (6, 8)}, ended)
    assert [row["request_id"] for row in rows] == [request.id for request in workload.requests]
    assert [(row["client"], row["position"]) for row in rows] == [
        (i % 3, i // 3) for i in range(count)
    ]
    for i, row in enumerate(rows):
        if i in finished:
            # The expected text decides; that the reference says otherwise is on record.
            assert row["outcome"] == ("ok" if outcome == "wrong" else outcome)
            assert row["first_divergence"] == 1
        else:
            assert row["outcome"] == ("timeout" if status == "hung" else "engine_died")
            assert row["latency_s"] is None
    counts = count_outcomes(rows)
    assert set(counts) == set(OUTCOMES)
    assert sum(counts.values()) == count

    out = tmp_path_factory.mktemp("run") / "run"
    RunWriter.create(out, {"plan": PLAN.as_dict()}).write_trial(
        trial_row("run", PLAN, TRIAL, ended), rows
    )
    run = load_run(out)
    assert list(run.trials["status"]) == [status]
    assert len(run.requests) == count


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    file = tmp_path / "answers.jsonl"
    whole = json.dumps(record(0)) + "\n"
    for cut in range(len(whole) - 1):
        file.write_text(whole + whole[:cut])
        assert read_lines(file) == [record(0)]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_an_estimate_learns_and_never_exceeds_the_deadline():
    plan = Plan(releases=(REPORTED,), concurrency=(1, 4), repeats=2, trial_timeout_s=50)
    estimate = Estimate(plan, jobs=2)
    one, four, *_ = plan.trials()
    assert 0 < estimate.trial_s(four) <= 50
    estimate.measured(one, 10)
    estimate.measured(one, 20)
    assert estimate.trial_s(one) == 15
    estimate.measured(four, 500)
    assert estimate.trial_s(four) == 50
    assert estimate.total_s([one, four]) == pytest.approx(65 / 2)


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45 s"), (700, "12 min"), (11100, "3 h 05 min")]
)
def test_durations_are_for_people(seconds, words):
    assert duration(seconds) == words
