"""Verdicts on synthetic cells of known truth: one cause, two that mask each other, too little."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import cell_row, request_row

from analysis import figures
from analysis.answers_causes import (
    against_the_report,
    answer_in_a_sentence,
    causes_in_words,
    ranked,
    verdict_in_words,
    whole_in_words,
)
from analysis.causes import (
    Verdict,
    applicable,
    arms,
    first_failure,
    scenarios,
    verdicts,
    whole_arm,
)
from analysis.causes.hypotheses import HYPOTHESES, SUSPECTS
from analysis.errors import EngineError
from analysis.store import to_frame
from analysis.sweep import Plan
from analysis.treat import fixes

TRIED = ["correct-seq-lens", "copy-tokens", "lock-cache", "big-pool"]
Truth = Callable[[Sequence[str]], float]
"""The true failure rate of a set of treatments."""


def asked(
    truth: Truth,
    *,
    sharing: str = "trie",
    cells: int = 12,
    requests: int = 20,
    tried: Sequence[str] = TRIED,
    outcome: str = "wrong",
    seed: int = 0,
) -> tuple[list[Verdict], dict[str, pd.DataFrame]]:
    rng = np.random.default_rng(seed)
    hypotheses = applicable("3.1.0", sharing, tried)
    cell_rows, request_rows, findings = [], [], []
    for number, names in enumerate(arms(hypotheses, "3.1.0", sharing)):
        rate = truth(names)
        for repeat in range(cells):
            cell_id = f"c{number}-{repeat}"
            changes: dict[str, Any] = {"cell_id": cell_id, "treatments": list(names)}
            cell_rows.append(
                cell_row(**changes, prefix_sharing=sharing, concurrency=8, repeat=repeat)
            )
            for request, drawn in enumerate(rng.random(requests)):
                failed = bool(drawn < rate)
                request_rows.append(
                    request_row(
                        cell_id=cell_id,
                        request_id=f"r{request}",
                        outcome=outcome if failed else "ok",
                    )
                )
                if failed:
                    findings.append(
                        {
                            "finding_id": f"f{request}",
                            "cell_id": cell_id,
                            "rule": "own prefix",
                            "severity": "wrong data",
                            "request_id": f"r{request}",
                            "message": "m",
                        }
                    )
    tables = {
        "requests": to_frame("requests", request_rows),
        "cells": to_frame("cells", cell_rows),
        "findings": to_frame("findings", findings),
    }
    found = verdicts(tables["requests"], tables["cells"], tables["findings"], hypotheses)
    return found, tables


def words(found: Sequence[Verdict]) -> dict[str, str]:
    return {v.hypothesis.treatment: v.word for v in found}


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
    found, _ = asked(one_cause)
    assert words(found) == {
        "correct-seq-lens": "supported",
        "copy-tokens": "refuted",
        "lock-cache": "refuted",
        "big-pool": "refuted",
    }
    [cause] = ranked(found)
    assert cause.alone.failures == 0
    assert cause.back is not None
    assert cause.share == pytest.approx(1.0, abs=0.3)
    assert cause.without.wrong_data == cause.without.failures > 0


def test_causes_that_mask_each_other_show_when_each_is_put_back_alone() -> None:
    found, _ = asked(two_that_mask_each_other)
    for verdict in (of(found, "correct-seq-lens"), of(found, "copy-tokens")):
        assert verdict.p_alone > 0.05
        assert verdict.p_back is not None
        assert verdict.p_back < 0.05
    assert words(found)["correct-seq-lens"] == words(found)["copy-tokens"] == "supported"
    assert words(found)["lock-cache"] == words(found)["big-pool"] == "refuted"


def test_the_larger_of_two_causes_is_named_first() -> None:
    found, _ = asked(two_that_add_up)
    assert [v.hypothesis.treatment for v in ranked(found)] == ["correct-seq-lens", "copy-tokens"]
    assert words(found)["copy-tokens"] == "contributes"


def test_too_little_is_undecided_and_says_what_would_do() -> None:
    found, _ = asked(one_cause, cells=1, requests=8)
    assert set(words(found).values()) == {"undecided"}
    assert all(v.needed is not None and v.needed > 8 for v in found)
    enough = max(v.needed or 0 for v in found)
    assert "would decide" in verdict_in_words(found[0])
    again, _ = asked(one_cause, cells=max(6, enough // 20))
    assert words(again)["correct-seq-lens"] == "supported"


def test_without_failures_nothing_is_decided() -> None:
    found, _ = asked(lambda names: 0.0)
    assert set(words(found).values()) == {"undecided"}
    assert "No cause was found" in causes_in_words("s", found)


def test_chance_alone_seldom_makes_a_cause() -> None:
    # 20 scenarios without any cause: at 5% a scenario 1 is due, and 5 would be p = 0.003.
    tried = TRIED[:3]
    wrong = sum(
        bool(ranked(asked(lambda names: 0.3, cells=5, requests=6, tried=tried, seed=seed)[0]))
        for seed in range(20)
    )
    assert wrong < 5


def test_a_treatment_that_makes_it_worse_is_no_cause() -> None:
    def worse(names: Sequence[str]) -> float:
        return 0.9 if "lock-cache" in names else one_cause(names)

    found, _ = asked(worse)
    assert words(found)["lock-cache"] == "refuted"
    assert "More failed with it" in verdict_in_words(of(found, "lock-cache"))


def test_rejected_requests_count_only_if_asked_for() -> None:
    _, tables = asked(one_cause, outcome="rejected")
    hypotheses = applicable("3.1.0", "trie", TRIED)
    frames = tables["requests"], tables["cells"], tables["findings"]
    assert verdicts(*frames, hypotheses)[0].without.failures == 0
    counted = verdicts(*frames, hypotheses, failures=("wrong", "rejected"))
    assert words(counted)["correct-seq-lens"] == "supported"


def test_a_fix_whose_absence_brings_nothing_back_is_no_headline() -> None:
    def either_mends(names: Sequence[str]) -> float:
        return 0.0 if {"correct-seq-lens", "copy-tokens"} & set(names) else 0.4

    found, _ = asked(either_mends)
    assert words(found)["correct-seq-lens"] in ("supported", "contributes")
    said = answer_in_a_sentence({"a scenario": found})
    assert not any(verdict.returns for verdict in found)
    assert "none is certain" in said
    assert "nothing is seen to come back" in causes_in_words("a scenario", found)


def test_only_what_a_lock_or_a_single_worker_ends_is_a_race() -> None:
    assert {h.treatment for h in HYPOTHESES if h.suspect == "races"} == {"lock-cache", "one-worker"}
    assert {h.suspect for h in HYPOTHESES} == set(SUSPECTS)


def test_what_is_said_and_drawn_follows_from_the_verdicts() -> None:
    found, _ = asked(one_cause)
    scenarios = {"a scenario": found}
    said = causes_in_words("a scenario", found)
    assert "1. `correct-seq-lens` (supported)" in said
    assert "upstream #873" in said
    assert "2." not in said
    against = against_the_report(scenarios)
    assert "A lock around the cache changes nothing" in against
    assert "**Races in the cache**: no cause was found here" in against
    assert answer_in_a_sentence(scenarios) == (
        "Causes, by what mends them: a scenario: correct-seq-lens."
    )
    assert "0 of 240" in whole_in_words(found[0].everything)
    table = figures.verdict_table(found)
    assert list(table.frame["verdict"]) == ["supported", "refuted", "refuted", "refuted"]
    assert "correct-seq-lens" in table._repr_html_()
    figure = figures.verdict_figure(found, "Verdicts")
    assert figure.get_suptitle() == "Verdicts"
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert {"correct-seq-lens", "Races in the cache", "lock-cache"} <= set(names)
    # What is no fix has a mark at the left only: bars, caps and whiskers of two at the right.
    assert len(right.containers) == 2
    assert len(left.containers) == 4


def test_every_set_of_treatments_makes_a_plan_and_appears_once() -> None:
    for release in ("3.1.0", "3.9.0"):
        for sharing in ("none", "trie"):
            sets = arms(applicable(release, sharing), release, sharing)
            assert len(set(sets)) == len(sets)
            Plan(releases=(release,), prefix_sharing=(sharing,), treatments=sets)
            every = fixes(release, sharing)
            assert every in sets
            assert all(tuple(f for f in every if f != fix) in sets for fix in every)


def test_every_fix_is_somebodys_hypothesis() -> None:
    for release in ("3.1.0", "3.9.0"):
        for sharing in ("none", "trie"):
            tried = {h.treatment for h in applicable(release, sharing)}
            assert set(fixes(release, sharing)) <= tried


def test_an_unknown_hypothesis_is_refused() -> None:
    with pytest.raises(EngineError, match="No hypothesis is tried with 'prayer'"):
        applicable("3.1.0", "none", ["prayer"])


def test_scenarios_are_those_of_a_release_and_make_plans() -> None:
    for release in ("3.1.0", "3.9.0"):
        known = scenarios(release)
        assert len({s.name for s in known}) == len(known)
        assert {s.prefix_sharing for s in known} == {"none", "trie"}
        for scenario in known:
            plan = scenario.plan(repeats=2)
            assert plan.sanitize
            # The same prompts in every arm: the seed does not know of treatments.
            first = {cell.treatments for cell in plan.cells() if cell.repeat == 0}
            assert () in first
            assert fixes(release, scenario.prefix_sharing) in first
            every = scenario.whole_plan(8, 4, 1)
            assert {cell.treatments for cell in every.cells() if not cell.is_control} == {
                fixes(release, scenario.prefix_sharing)
            }
    assert [s.name for s in scenarios("3.1.0", ["trie"])] == ["trie"]
    with pytest.raises(EngineError, match="has no scenario 'dream'"):
        scenarios("3.1.0", ["dream"])
    with pytest.raises(EngineError, match=r"shortfin 3\.5\.0"):
        scenarios("3.5.0")


def test_a_scenario_is_swept_and_judged_on_the_real_engine(tmp_path: Path) -> None:
    [known] = scenarios("3.9.0", ["no sharing, 64 pages"])
    small = dataclasses.replace(
        known, page_count=24, rounds=6, among=("keep-decode-record",), request_timeout_s=3.0
    )
    run = small.try_all(tmp_path / "run", repeats=1)
    [verdict] = small.judge(run)
    # Every answer that enters a new page leaks one: soon there are none left to answer with.
    assert verdict.without.failures > verdict.without.n / 3
    assert verdict.effect.pairs == verdict.without.n == 24
    assert verdict.everything.failures < verdict.without.failures
    request, cell = first_failure(run) or ("", "")
    failed = run.requests[run.requests["cell_id"] == cell].set_index("request_id")
    assert failed.loc[request, "outcome"] not in ("ok", "rejected")
    assert not run.cells.set_index("cell_id").loc[cell, "treatments"]
    assert whole_arm(run).treatments == ()
