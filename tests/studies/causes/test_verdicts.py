"""Verdicts on synthetic trials of known truth: one cause, two that mask each other, too little."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import NEWEST, REPORTED
from synthetic import request_row, trial_row

from analysis.core.errors import EngineError
from analysis.runs.schema import FAILURES
from analysis.runs.store import to_frame
from analysis.sanitizer.recorded import Control, controls_of
from analysis.stats.exposure import Change
from analysis.studies.causes import (
    Verdict,
    applicable,
    arms,
    decide,
    decide_all,
    first_failure,
    measure,
    scenarios,
    whole_arm,
)
from analysis.studies.causes.figures import verdict_figure, verdict_table
from analysis.studies.causes.hypotheses import HYPOTHESES, SUSPECTS, Hypothesis, Names
from analysis.studies.causes.words import (
    against_the_report,
    answer_in_a_sentence,
    causes_in_words,
    ranked,
    verdict_in_words,
    whole_in_words,
)
from analysis.sweep.plan import Plan
from analysis.treatments import fixes

TRIED = ["correct-seq-lens", "copy-tokens", "lock-cache", "big-pool"]
Truth = Callable[[Sequence[str]], float]
"""The true failure rate of a set of treatments."""


def tried(
    truth: Truth,
    *,
    sharing: str = "trie",
    trials: int = 16,
    requests: int = 20,
    among: Sequence[str] = TRIED,
    outcome: str = "wrong",
    seed: int = 0,
) -> tuple[list[Verdict], dict[str, pd.DataFrame]]:
    rng = np.random.default_rng(seed)
    hypotheses = applicable(REPORTED, sharing, among)
    trial_rows, request_rows, findings = [], [], []
    for number, names in enumerate(arms(hypotheses, REPORTED, sharing)):
        rate = truth(names)
        for repeat in range(trials):
            trial_id = f"c{number}-{repeat}"
            changes: dict[str, Any] = {"trial_id": trial_id, "treatments": list(names)}
            trial_rows.append(
                trial_row(**changes, prefix_sharing=sharing, concurrency=8, repeat=repeat)
            )
            for request, drawn in enumerate(rng.random(requests)):
                failed = bool(drawn < rate)
                request_rows.append(
                    request_row(
                        trial_id=trial_id,
                        request_id=f"r{request}",
                        outcome=outcome if failed else "ok",
                    )
                )
                if failed:
                    findings.append(
                        {
                            "finding_id": f"f{request}",
                            "trial_id": trial_id,
                            "rule": "wrong-kv-read",
                            "severity": "wrong data",
                            "request_id": f"r{request}",
                            "message": "m",
                        }
                    )
    tables = {
        "requests": to_frame("requests", request_rows),
        "trials": to_frame("trials", trial_rows),
        "findings": to_frame("findings", findings),
    }
    return judged(tables, hypotheses), tables


def control(arm: Names, *, injected: bool = True, alarmed: bool = True) -> Control:
    return Control(REPORTED, "trie", arm, "fault:wrong-page", injected, alarmed)


def judged(
    tables: dict[str, pd.DataFrame],
    hypotheses: Sequence[Hypothesis],
    failures: Sequence[str] = FAILURES,
    controls: Sequence[Control] | None = None,
) -> list[Verdict]:
    """Return the verdicts on one scenario; without other controls, one in each arm was found."""
    if controls is None:
        sets = tables["trials"]["treatments"].map(tuple)
        controls = [control(names) for names in dict.fromkeys(sets)]
    frames = (tables[name] for name in ("requests", "trials", "findings"))
    return decide(measure(*frames, hypotheses, failures, controls=controls))


def words(found: Sequence[Verdict]) -> dict[str, str]:
    return {v.hypothesis.treatment: v.status for v in found}


def of(found: Sequence[Verdict], treatment: str) -> Verdict:
    return next(v for v in found if v.hypothesis.treatment == treatment)


def one_cause(names: Sequence[str]) -> float:
    return 0.0 if "correct-seq-lens" in names else 0.3


def two_that_mask_each_other(names: Sequence[str]) -> float:
    mended = {"correct-seq-lens", "copy-tokens"} & set(names)
    return {0: 0.5, 1: 0.5, 2: 0.0}[len(mended)]


def two_that_add_up(names: Sequence[str]) -> float:
    left = 0.4 * ("correct-seq-lens" not in names) + 0.15 * ("copy-tokens" not in names)
    return left


def test_a_true_cause_is_supported_and_what_is_none_refuted() -> None:
    found, _ = tried(one_cause)
    assert words(found) == {
        "correct-seq-lens": "supported",
        "copy-tokens": "refuted",
        "lock-cache": "refuted",
        "big-pool": "refuted",
    }
    [cause] = ranked(found)
    assert cause.single.failures == 0
    assert cause.ablation is not None
    assert cause.p_value == pytest.approx(2**-15)
    assert cause.p_adjusted == pytest.approx(4 * 2**-15)
    assert cause.share == pytest.approx(1.0, abs=0.3)
    assert cause.without.wrong_data == cause.without.failures > 0


def test_causes_that_mask_each_other_show_when_each_is_put_back_alone() -> None:
    found, _ = tried(two_that_mask_each_other)
    for verdict in (of(found, "correct-seq-lens"), of(found, "copy-tokens")):
        assert abs(verdict.effect.net) < 0.3 * verdict.without.failures
        assert verdict.ablation is not None
        assert verdict.ablation.net > 0.7 * verdict.without.failures
        assert verdict.p_adjusted < 0.05
    assert words(found)["correct-seq-lens"] == words(found)["copy-tokens"] == "supported"
    assert words(found)["lock-cache"] == words(found)["big-pool"] == "refuted"


def test_the_larger_of_two_causes_is_named_first() -> None:
    found, _ = tried(two_that_add_up)
    assert [v.hypothesis.treatment for v in ranked(found)] == ["correct-seq-lens", "copy-tokens"]
    assert words(found)["copy-tokens"] == "contributes"


def test_too_little_is_undecided_and_says_what_would_do() -> None:
    found, _ = tried(one_cause, trials=3)
    assert set(words(found).values()) == {"undecided"}
    cause = of(found, "correct-seq-lens")
    # Three engines can reach 0.25 whatever they show, and four hypotheses are asked.
    assert cause.p_value == pytest.approx(0.25)
    assert cause.needed is not None
    assert f"about {cause.needed} engines" in verdict_in_words(cause)
    again, _ = tried(one_cause, trials=cause.needed)
    assert words(again)["correct-seq-lens"] in ("supported", "contributes")


def test_what_fails_with_all_fixes_is_credited_to_no_hypothesis() -> None:
    found, _ = tried(lambda names: 0.3)
    for verdict in found:
        if verdict.ablation is not None:
            assert abs(verdict.comes_back().value) < 0.35
            assert verdict.leave_one_out.failures > 0.2 * verdict.leave_one_out.n
        assert verdict.status in ("refuted", "undecided")


def test_hypotheses_of_other_scenarios_are_allowed_for() -> None:
    found, _ = tried(one_cause)
    alone = of(found, "correct-seq-lens")
    together = decide([*found, *found, *found], others=2)
    assert together[0].tests == 14
    assert together[0].p_adjusted > alone.p_adjusted


def change(name: str, first: float, second: float, low: float, high: float) -> Change:
    return Change(name, first, second, 16, low, high)


def test_a_treatment_that_takes_the_occasion_away_has_shown_nothing() -> None:
    found, _ = tried(one_cause)
    cause = of(found, "correct-seq-lens")
    fewer = change("batch_rows", 4.0, 1.0, -0.8, -0.7)
    [verdict] = decide([dataclasses.replace(cause, exposures=(fewer,))])
    assert verdict.status == "undecided"
    assert "Undecided: exposure changed with it" in verdict_in_words(verdict)
    # More occasion to fail does not take a cause away, nor does what it acts through.
    more = change("batch_rows", 1.0, 4.0, 2.5, 3.5)
    assert decide([dataclasses.replace(cause, exposures=(more,))])[0].status == "supported"
    acting = dataclasses.replace(cause.hypothesis, through=("batch_rows",))
    through = dataclasses.replace(cause, exposures=(fewer,), hypothesis=acting)
    assert decide([through])[0].status == "supported"
    lock = dataclasses.replace(of(found, "lock-cache"), exposures=(more,))
    assert decide([lock])[0].status == "undecided"
    assert "Exposure not recorded." in verdict_in_words(cause)


SILENT = control(("correct-seq-lens",), alarmed=False)
IDLE = control(("correct-seq-lens",), injected=False, alarmed=False)
FOUND = control(("correct-seq-lens",))


@pytest.mark.parametrize(
    ("controls", "because"),
    [
        ([FOUND, SILENT], "a planted fault was not detected in its arm (correct-seq-lens)"),
        ([IDLE, IDLE], "no planted fault was injected in its arm (correct-seq-lens)"),
        ([], "no planted fault was injected in its arm (correct-seq-lens)"),
        ([IDLE, FOUND], ""),
    ],
    ids=["silent", "idle", "none", "idle, then found"],
)
def test_an_arm_in_which_no_planted_fault_was_found_has_no_verdict(
    controls: list[Control], because: str
) -> None:
    found, tables = tried(one_cause)
    elsewhere = [
        control(names)
        for names in dict.fromkeys(tables["trials"]["treatments"].map(tuple))
        if names != ("correct-seq-lens",)
    ]
    hypotheses = [verdict.hypothesis for verdict in found]
    again = judged(tables, hypotheses, controls=[*elsewhere, *controls])
    cause = of(again, "correct-seq-lens")
    assert cause.objection == because
    assert because in verdict_in_words(cause)
    assert cause.status == ("undecided" if because else "supported")
    # The other hypotheses have other arms.
    assert {**words(again), "correct-seq-lens": "supported"} == words(found)


def test_the_arm_with_all_fixes_counts_for_what_is_no_fix_too() -> None:
    found, tables = tried(one_cause)
    every = fixes(REPORTED, "trie")
    sets = dict.fromkeys(tables["trials"]["treatments"].map(tuple))
    controls = [control(names) for names in sets if names != every]
    again = judged(tables, [verdict.hypothesis for verdict in found], controls=controls)
    assert set(words(again).values()) == {"undecided"}


def test_without_failures_nothing_is_decided() -> None:
    found, _ = tried(lambda names: 0.0)
    assert set(words(found).values()) == {"undecided"}
    assert "No cause was shown" in causes_in_words("s", found)


def test_a_treatment_that_makes_it_worse_is_no_cause() -> None:
    def worse(names: Sequence[str]) -> float:
        return 0.9 if "lock-cache" in names else one_cause(names)

    found, _ = tried(worse)
    assert words(found)["lock-cache"] == "refuted"
    assert "More failed with it" in verdict_in_words(of(found, "lock-cache"))


def test_rejected_requests_count_only_if_asked_for() -> None:
    _, tables = tried(one_cause, outcome="rejected")
    hypotheses = applicable(REPORTED, "trie", TRIED)
    assert judged(tables, hypotheses)[0].without.failures == 0
    counted = judged(tables, hypotheses, ("wrong", "rejected"))
    assert words(counted)["correct-seq-lens"] == "supported"


def test_a_fix_whose_absence_brings_nothing_back_is_no_headline() -> None:
    def either_mends(names: Sequence[str]) -> float:
        return 0.0 if {"correct-seq-lens", "copy-tokens"} & set(names) else 0.4

    found, _ = tried(either_mends)
    assert words(found)["correct-seq-lens"] in ("supported", "contributes")
    said = answer_in_a_sentence({"a scenario": found})
    assert not any(verdict.returns for verdict in found)
    assert "none is certain" in said
    listed = causes_in_words("a scenario", found)
    assert "come back without it alone is not shown" in listed
    assert all(verdict.spared for verdict in ranked(found))
    for text in (said, listed):
        assert "the rest the other fixes do as well" in text
    # Too much scatter for a bound: then it is said of none, though as little comes back.
    unsure = []
    for verdict in found:
        if verdict.ablation is not None:
            scattered = dataclasses.replace(
                verdict.ablation, firsts=(12, 0) * 8, seconds=(0, 8) * 8
            )
            verdict = dataclasses.replace(verdict, ablation=scattered)
        unsure.append(verdict)
    assert not any(verdict.returns or verdict.spared for verdict in ranked(unsure))
    assert "nor that the other fixes do as well." in causes_in_words("a scenario", unsure)
    assert "do as well" not in answer_in_a_sentence({"a scenario": unsure})


def test_only_what_a_lock_or_a_single_worker_ends_is_a_race() -> None:
    assert {h.treatment for h in HYPOTHESES if h.suspect == "races"} == {"lock-cache", "one-worker"}
    assert {h.suspect for h in HYPOTHESES} == set(SUSPECTS)


def test_what_is_said_and_drawn_follows_from_the_verdicts() -> None:
    found, _ = tried(one_cause)
    scenarios = {"a scenario": found}
    said = causes_in_words("a scenario", found)
    assert "1. `correct-seq-lens` (supported)" in said
    assert "upstream #873" in said
    assert "2." not in said
    against = against_the_report(scenarios)
    assert "A lock around the cache is refuted as the main cause" in against
    assert "**Races in the cache**: no cause was shown here" in against
    assert answer_in_a_sentence(scenarios) == (
        "Causes, by their fixes: a scenario: correct-seq-lens."
    )
    assert "0 of 320" in whole_in_words(found[0].all_fixes)
    assert "0 of 16 engines with a failure bounds such engines at 17%" in (
        whole_in_words(found[0].all_fixes)
    )
    table = verdict_table(found)
    assert list(table.frame["verdict"]) == ["supported", "refuted", "refuted", "refuted"]
    assert "correct-seq-lens" in table.markup
    figure = verdict_figure(found, "Verdicts")
    assert figure.get_suptitle() == "Verdicts"
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert {"correct-seq-lens", "Races in the cache", "lock-cache"} <= set(names)
    # What is no fix has a mark at the left only: bars, caps and whiskers of two at the right.
    assert len(right.containers) == 2
    assert len(left.containers) == 4


def test_every_set_of_treatments_makes_a_plan_and_appears_once() -> None:
    for release in (REPORTED, NEWEST):
        for sharing in ("none", "trie"):
            sets = arms(applicable(release, sharing), release, sharing)
            assert len(set(sets)) == len(sets)
            Plan(releases=(release,), prefix_sharing=(sharing,), treatments=sets)
            every = fixes(release, sharing)
            assert every in sets
            assert all(tuple(f for f in every if f != fix) in sets for fix in every)


def test_every_fix_is_somebodys_hypothesis() -> None:
    for release in (REPORTED, NEWEST):
        for sharing in ("none", "trie"):
            tried = {h.treatment for h in applicable(release, sharing)}
            assert set(fixes(release, sharing)) <= tried


def test_an_unknown_hypothesis_is_refused() -> None:
    with pytest.raises(EngineError, match="No hypothesis is tested by 'prayer'"):
        applicable(REPORTED, "none", ["prayer"])


def test_scenarios_are_those_of_a_release_and_make_plans() -> None:
    for release in (REPORTED, NEWEST):
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
            assert {trial.treatments for trial in every.trials() if not trial.is_control} == {
                fixes(release, scenario.prefix_sharing)
            }
    assert [s.name for s in scenarios(REPORTED, ["trie"])] == ["trie"]
    with pytest.raises(EngineError, match="has no scenario 'dream'"):
        scenarios(REPORTED, ["dream"])
    with pytest.raises(EngineError, match=r"shortfin 3\.5\.0"):
        scenarios("3.5.0")


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
