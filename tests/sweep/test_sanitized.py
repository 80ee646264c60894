"""Sweeps that are sanitized, on real engines: treatments, controls, and what is found."""

from __future__ import annotations

import json

import pytest
from support import NEWEST, RELEASES, REPORTED

from analysis.runs.store import load_run
from analysis.runs.tables import arm_of, is_control
from analysis.sanitizer import check_run
from analysis.sanitizer.findings import WRONG_DATA
from analysis.studies.first_error.detection_lead import detection_lead
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.runner import run_sweep
from analysis.treatments.faults import TRIES

CORRECTED = ("correct-seq-lens", "zero-start-positions", "zero-page-tables")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The reported release as it is and corrected, sanitized."""
    plan = Plan(
        releases=(REPORTED,), concurrency=(4,), repeats=2, treatments=((), CORRECTED), sanitize=True
    )
    return plan, run_sweep(plan, tmp_path_factory.mktemp("old") / "run", jobs=2, progress=False)


def test_trials_have_their_treatments(old):
    plan, run = old
    assert [arm_of(trial.treatments) for trial in plan.trials()] == [
        (), CORRECTED, (), CORRECTED, CORRECTED, ()
    ]  # fmt: skip
    assert [is_control(trial.treatments) for trial in plan.trials()] == [True, True, *[False] * 4]
    treated = run.trials["treatments"].map(lambda names: tuple(names))
    assert sorted(treated) == sorted([(), (), CORRECTED, CORRECTED])
    assert set(run.trials["recording"]) == {"events"}
    whole = load_run(run.path, controls=True)
    controls = whole.trials["treatments"].map(lambda names: is_control(tuple(names)))
    assert controls.sum() >= 2
    assert whole.trials.loc[controls.astype(bool), "injected"].notna().all()


def test_what_is_found_is_stored_and_the_same_as_when_it_is_checked_again(old):
    _, run = old
    plain = run.trials[run.trials["treatments"].map(len) == 0]["trial_id"]
    found = run.findings
    assert set(found["trial_id"]) == set(plain)
    assert {"seq-len-mismatch"} <= set(found.loc[found["severity"] == WRONG_DATA, "rule"])
    # Every one of its requests reads beyond its own length, whether its answer is right or not.
    asked = run.requests[run.requests["trial_id"].isin(plain)]
    beyond = found[(found["rule"] == "seq-len-mismatch") & (found["cause"] == "overread")]
    assert set(beyond["request_id"]) == set(asked["request_id"])
    untreated, treated = sorted(check_run(run.path), key=lambda c: len(c.treatments))
    assert set(untreated.groups) == set(zip(found["rule"], found["cause"], strict=True))
    assert not treated.groups
    for checked in (untreated, treated):
        # One that was never injected says nothing, and another is planted.
        assert checked.controls == checked.alarms == 1
        assert checked.idle < TRIES
    assert treated.controls == 1


def test_every_wrong_answer_was_preceded_by_wrong_data(old):
    _, run = old
    ahead = detection_lead(run)
    wrong = run.requests["outcome"] == "wrong"
    assert len(ahead) == int((wrong & run.requests["first_divergence"].notna()).sum())
    assert ahead["invocation_id"].notna().all()
    assert (ahead["invocations_before"] >= 0).all()
    treated = run.trials.loc[run.trials["treatments"].map(len) > 0, "trial_id"]
    assert not (wrong & run.requests["trial_id"].isin(treated)).any()


def test_a_newer_release_is_checked_too(tmp_path):
    plan = Plan(releases=(NEWEST,), concurrency=(4,), repeats=1, sanitize=True)
    run = run_sweep(plan, tmp_path / "run", jobs=2, progress=False)
    (checked,) = check_run(run.path)
    assert (checked.controls, checked.alarms, checked.void) == (1, 1, False)
    assert ("page-leak", "dropped") in checked.groups
    assert not [g for members in checked.groups.values() for _, g in members
                if g.severity == WRONG_DATA]  # fmt: skip
    assert run.manifest["plan"]["sanitize"] is True


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("nonsense", "Unknown treatment 'nonsense'"),
        ("undo-correct-seq-lens", f"which shortfin {REPORTED} lacks"),
        ("fault:orphaned-leaf", "needs prefix sharing trie"),
        ("quarantine:0", "whole number of pages"),
    ],
)
def test_a_plan_with_an_impossible_treatment_is_refused(names, sentence):
    with pytest.raises(PlanError, match=sentence):
        Plan(releases=RELEASES, treatments=((names,),))


def test_a_plan_without_treatments_is_written_as_before():
    plain = Plan(releases=(REPORTED,)).as_dict()
    assert not {"treatments", "sanitize"} & plain.keys()
    assert json.dumps(plain)
