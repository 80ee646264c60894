"""Scenarios of releases: their sets of treatments, plans and sweeps."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest
from support import NEWEST, RELEASES, REPORTED

from analysis.core.errors import EngineError
from analysis.runs.tables import is_control
from analysis.sanitizer.recorded import controls_of
from analysis.studies.causes import (
    applicable,
    arms,
    decide_all,
    first_failure,
    scenarios,
    whole_arm,
)
from analysis.sweep.plan import Plan
from analysis.treatments import fixes


def test_every_set_of_treatments_makes_a_plan_and_appears_once() -> None:
    for release in RELEASES:
        for sharing in ("none", "trie"):
            sets = arms(applicable(release, sharing), release, sharing)
            assert len(set(sets)) == len(sets)
            Plan(releases=(release,), prefix_sharing=(sharing,), treatments=sets)
            every = fixes(release, sharing)
            assert every in sets
            assert all(tuple(f for f in every if f != fix) in sets for fix in every)


def test_every_fix_is_somebodys_hypothesis() -> None:
    for release in RELEASES:
        for sharing in ("none", "trie"):
            tried = {h.treatment for h in applicable(release, sharing)}
            assert set(fixes(release, sharing)) <= tried


def test_an_unknown_hypothesis_is_refused() -> None:
    with pytest.raises(EngineError, match="No hypothesis is tested by 'prayer'"):
        applicable(REPORTED, "none", ["prayer"])


def test_scenarios_are_those_of_a_release_and_make_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for release in RELEASES:
        known = scenarios(release)
        assert len({s.name for s in known}) == len(known)
        assert {s.prefix_sharing for s in known} == {"none", "trie"}
        for scenario in known:
            plan = scenario.plan(repeats=2)
            assert plan.sanitize
            # The same prompts in every arm: the seed does not know of treatments.
            first = {trial.treatments for trial in plan.trials() if trial.repeat == 0}
            assert () in first
            assert fixes(release, scenario.prefix_sharing) in first
            every = scenario.whole_plan(8, 4, 1)
            assert {
                trial.treatments for trial in every.trials() if not is_control(trial.treatments)
            } == {fixes(release, scenario.prefix_sharing)}
    assert [s.name for s in scenarios(REPORTED, ["trie"])] == ["trie"]
    with pytest.raises(EngineError, match="has no scenario 'dream'"):
        scenarios(REPORTED, ["dream"])
    module = import_module("analysis.studies.causes.scenarios")
    monkeypatch.setattr(module, "_SCENARIOS", ())
    with pytest.raises(EngineError, match=re.escape(f"shortfin {NEWEST}")):
        scenarios(NEWEST)


def test_a_scenario_is_swept_and_judged_on_the_real_engine(tmp_path: Path) -> None:
    [known] = scenarios(NEWEST, ["no sharing, 64 pages"])
    small = dataclasses.replace(
        known, page_count=24, rounds=6, among=("keep-decode-record",), request_timeout_s=3.0
    )
    run = small.try_all(tmp_path / "run", repeats=1)
    [verdict] = decide_all([(small, run)])[small.name]
    # One engine of each set decides nothing, however many of its requests failed.
    assert verdict.status == "undecided"
    arms_ = {control.arm: control for control in controls_of(run.path)}
    assert set(arms_) == {
        (),
        ("keep-decode-record",),
        fixes(NEWEST, "none"),
        tuple(f for f in fixes(NEWEST, "none") if f != "keep-decode-record"),
    }
    assert not any(control.silent for control in arms_.values())
    # Every answer that enters a new page leaks one: soon there are none left to answer with.
    assert verdict.without.failures > verdict.without.n / 3
    assert verdict.effect.pairs == verdict.without.n == 24
    assert verdict.all_fixes.failures < verdict.without.failures
    request, trial = first_failure(run) or ("", "")
    failed = run.requests[run.requests["trial_id"] == trial].set_index("request_id")
    assert failed.loc[request, "outcome"] not in ("ok", "rejected")
    assert not run.trials.set_index("trial_id").loc[trial, "treatments"]
    assert whole_arm(run).treatments == ()
