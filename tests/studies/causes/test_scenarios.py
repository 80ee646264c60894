"""Scenarios of releases: their sets of treatments, plans and sweeps."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support import NEWEST, RELEASES, REPORTED

from analysis.core.errors import CachelabError, EngineError
from analysis.runs.tables import is_control
from analysis.sanitizer.recorded import controls_of
from analysis.studies.causes import (
    applicable,
    arms,
    decide_all,
    first_failure,
    own_scenario,
    reintroduced,
    scenarios,
    whole_arm,
)
from analysis.sweep.plan import Plan
from analysis.treatments import fixes
from analysis.workloads.named import make_workload


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


def own_file(directory: Path) -> Path:
    """Write a small workload of one's own."""
    lines = [
        {"id": one.id, "prompt": one.prompt, "max_new_tokens": 8, "expected": one.expected}
        for one in make_workload("mixed", count=8, seed=3).requests
    ]
    file = directory / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_scenario_of_ones_own_has_the_given_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = own_scenario(
        REPORTED, "mine.jsonl", prefix_sharing="trie", pages=48, concurrency=3,
        treatments=["copy-tokens"], batch_sizes=[1, 4],
    )  # fmt: skip
    plan, whole = given.plan(repeats=6), given.whole_plan(8, 4, 2)
    for made in (plan, whole):
        assert made.workload == str(tmp_path / "mine.jsonl")  # also from another directory
        assert (made.prefix_sharing, made.pages, made.batch_sizes) == (("trie",), (48,), (1, 4))
        assert made.rounds is None
    assert (plan.concurrency, whole.concurrency) == ((3,), (8,))
    assert [h.treatment for h in given.hypotheses()] == ["copy-tokens"]
    put_back = reintroduced(NEWEST, 6, own=own_scenario(NEWEST, "mixed", pages=48, rounds=2))
    assert put_back is not None
    assert (put_back.pages, put_back.rounds, put_back.concurrency) == ((48,), 2, (8,))
    assert reintroduced(REPORTED, 6, own=given) is None
    own_scenario(REPORTED, "mixed+forks")


@pytest.mark.parametrize(
    ("workload", "given", "output"),
    [
        ("absent.jsonl", {}, "Unknown workload 'absent.jsonl'"),
        ("mixed", {"pages": 0}, "`--pages` must be from 1"),
        ("mixed", {"batch_sizes": [4, 1]}, "must be ascending"),
        ("mixed", {"prefix_sharing": "tree"}, "Choose none or trie"),
        ("mixed", {"model": "absent"}, "no model of that name"),
        ("mixed", {"treatments": ["prayer"]}, "Unknown treatment 'prayer'"),
        ("mixed", {"treatments": ["keep-decode-record"]}, "shortfin 3.1.0 lacks"),
        ("mixed", {"treatments": ["copy-tokens"]}, "trie"),
        ("mixed", {"concurrency": 0}, "`--concurrency` must be from 1"),
    ],
)
def test_wrong_values_of_a_scenario_are_refused_in_a_sentence(
    workload: str, given: dict[str, Any], output: str
) -> None:
    with pytest.raises(CachelabError, match=re.escape(output)) as refused:
        own_scenario(REPORTED, workload, **given)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_notebook_05_tests_a_scenario_of_ones_own(tmp_path: Path) -> None:
    from analysis.report import find_notebooks, publish

    given = {"workload": str(own_file(tmp_path)), "concurrency": 4, "pages": 48, "repeats": 6,
             "treatments": ["correct-seq-lens"], "whole": [[4, 1, 2]]}  # fmt: skip
    result = publish(
        find_notebooks(["05_root_causes"]), releases=[REPORTED], out=tmp_path / "out",
        parameters=given,
    )  # fmt: skip
    assert result.ok
    [page] = result.pages
    text = page.html.read_text()
    assert "own, mine.jsonl" in text
    assert "correct-seq-lens" in text
    [run] = (tmp_path / "out" / "runs").glob("*/own-mine.jsonl-*")
    assert {c.arm for c in controls_of(run)} >= {(), ("correct-seq-lens",)}


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
