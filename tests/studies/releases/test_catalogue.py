"""The catalogue of causes: its entries, its verdicts on known truth, and a few on real engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support import NEWEST, REPORTED
from synthetic import make_run, trial_row

from analysis.runs.store import Run, concatenated
from analysis.runs.tables import to_frame
from analysis.sanitizer.rules import consequence_of
from analysis.shortfin.releases import supported
from analysis.studies import releases as study
from analysis.studies.releases import catalogue
from analysis.studies.releases.catalogue import (
    CAUSES,
    MOST_REQUESTS,
    UNANSWERED,
    Demonstration,
    adjusted,
)
from analysis.sweep.runner import run_sweep

FIRST = CAUSES[0]


def run_of(
    found: dict[tuple[str, ...], list[bool]],
    shown_by: Demonstration = FIRST.shown_by,
    **changes: object,
) -> Run:
    """Return a run of engines of 3.1.0: whether FIRST was found in each, by their treatments."""
    trials, findings = [], []
    for arm, each in found.items():
        for repeat, has in enumerate(each):
            name = f"{'+'.join(arm)}-{repeat}"
            settings = {
                name: getattr(shown_by, name)
                for name in ("prefix_sharing", "page_count", "workload", "concurrency")
            } | {"batch_sizes": shown_by.compiled}
            row = trial_row(trial_id=name, repeat=repeat, treatments=list(arm), release="3.1.0")
            trials.append(row | settings | changes)
            if has:
                findings.append({
                    "finding_id": name, "trial_id": name, "rule": FIRST.rule, "cause": FIRST.cause,
                    "message": "it did",
                })  # fmt: skip
    return dataclasses.replace(
        make_run({}), trials=to_frame("trials", trials), findings=to_frame("findings", findings)
    )


def of_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr(catalogue, "CAUSES", (FIRST,))
    (row,) = study.demonstrated(run).to_dict("records")
    return row


def test_every_entry_is_a_small_demonstration_of_a_cause_of_some_release() -> None:
    assert len({one.name for one in CAUSES}) == len(CAUSES)
    places = dict.fromkeys(one.shown_by for one in CAUSES)
    assert len({dataclasses.replace(place, rounds=1) for place in places}) == len(places)
    for one in CAUSES:
        assert one.rule == UNANSWERED or consequence_of(one.rule, one.cause)
        assert one.shown_by.requests <= MOST_REQUESTS
        assert any(map(one.fits, supported()))


def test_each_plan_has_enough_pairs_for_its_verdicts() -> None:
    plans = study.demonstrations(supported())
    for one in CAUSES:
        trials = [
            trial
            for plan in plans
            if (plan.prefix_sharing, plan.pages, plan.workload, plan.batch_sizes, plan.options) == (
                (one.shown_by.prefix_sharing,), (one.shown_by.page_count,), one.shown_by.workload,
                (one.shown_by.batch_size,), one.shown_by.options,
            )
            for trial in plan.trials()
        ]  # fmt: skip
        assert {trial.release for trial in trials} == {*supported()}
        pairs = sum(
            one.fits(trial.release) and trial.treatments == one.arms(trial.release)[1]
            for trial in trials
        )
        others = {str(number): [] for number in range(len(CAUSES) - 1)}
        assert adjusted({one.name: [1] * pairs, **others})[one.name] <= 0.05


def test_a_finding_that_only_untreated_engines_have_is_removed(monkeypatch) -> None:
    row = of_first(run_of({(): [True] * 8, (FIRST.treatment,): [False] * 8}), monkeypatch)
    assert (row["before"], row["after"], row["pairs"], row["removed"]) == (8, 0, 8, True)


def test_a_finding_that_treated_engines_have_as_often_is_open(monkeypatch) -> None:
    row = of_first(run_of({(): [True] * 8, (FIRST.treatment,): [True] * 8}), monkeypatch)
    assert (row["before"], row["after"], row["removed"]) == (8, 8, False)


def test_a_finding_that_some_treated_engines_have_is_open(monkeypatch) -> None:
    treated = [True] + [False] * 11
    row = of_first(run_of({(): [True] * 12, (FIRST.treatment,): treated}), monkeypatch)
    assert row["p_value"] < 0.01
    assert (row["before"], row["after"], row["removed"]) == (12, 1, False)


@pytest.mark.parametrize("changes", [{"exit_signal": 9, "status": "hung"}, {"status": "crashed"}])
def test_an_engine_that_was_killed_or_crashed_counts_against_the_treatment(
    changes, monkeypatch
) -> None:
    run = run_of({(): [True, False], (FIRST.treatment,): [False, False]}, **changes)
    row = of_first(run, monkeypatch)
    assert (row["engines"], row["found"], row["before"], row["after"]) == (2, 1, 1, 2)


def test_a_process_that_was_killed_because_it_hung_is_found(monkeypatch) -> None:
    hung = next(one for one in CAUSES if one.rule == UNANSWERED)
    run = run_of({(): [False] * 2}, hung.shown_by, exit_signal=9, status="hung", release="3.3.0")
    monkeypatch.setattr(catalogue, "CAUSES", (hung,))
    (row,) = study.demonstrated(run).to_dict("records")
    assert (row["engines"], row["found"]) == (2, 2)


def test_pairs_of_a_release_that_cannot_have_the_defect_do_not_count(monkeypatch) -> None:
    arms = {(): [True] * 8, (FIRST.treatment,): [False] * 8}
    row = of_first(run_of(arms, release="3.9.0"), monkeypatch)
    assert (row["found"], row["pairs"], row["removed"]) == (8, 0, False)


@pytest.mark.parametrize("missed", [False, True])
def test_a_fault_that_was_not_detected_leaves_the_cause_open(missed, monkeypatch) -> None:
    run = run_of({(): [True] * 8, (FIRST.treatment,): [False] * 8,
                  (FIRST.treatment, "fault:flipped-bit"): [not missed]})  # fmt: skip
    injected = run.trials.assign(injected=[None] * 16 + [True])
    row = of_first(dataclasses.replace(run, trials=injected), monkeypatch)
    assert (row["missed"], row["removed"]) == (int(missed), not missed)


def test_a_run_without_any_demonstration_claims_nothing() -> None:
    found = study.demonstrated(make_run({}))
    assert found.empty
    assert study.demonstrated_in_words(found) == ""
    assert study.demonstrations_figure(found).axes == []


def test_verdicts_claim_falsely_in_at_most_5_percent_of_notebooks() -> None:
    rng = np.random.default_rng(1)
    names, notebooks = [one.name for one in CAUSES], 2000
    false = 0
    for _ in range(notebooks):
        shares = rng.uniform(0, 1, len(names))
        both = {
            name: (rng.binomial(1, share, 12) - rng.binomial(1, share, 12)).tolist()
            for name, share in zip(names, shares, strict=True)
        }
        false += min(adjusted(both).values()) <= 0.05
    assert false / notebooks <= 0.05


def test_open_causes_are_not_claimed() -> None:
    arms = {(): [True] * 10, (FIRST.treatment,): [False] * 10}
    places = dict.fromkeys(cause.shown_by for cause in CAUSES)
    found = study.demonstrated(concatenated([run_of(arms, place) for place in places]))
    said = study.demonstrated_in_words(found)
    claimed, _, rest = said.partition("open, because")
    assert claimed.startswith("1 cause, each shown by at most 6 requests")
    assert "correct-seq-lens" in claimed
    assert "copy-tokens" not in claimed
    assert "copy-tokens" in rest
    assert study.demonstrations_figure(found).axes


@pytest.mark.slow
@pytest.mark.parametrize("release", [REPORTED, NEWEST])
def test_the_first_two_causes_are_shown_and_removed_on_the_real_engine(
    release, tmp_path, monkeypatch
) -> None:
    (plan,) = [
        plan
        for plan in study.demonstrations([release])
        if (plan.pages, plan.prefix_sharing, plan.batch_sizes) == ((256,), ("none",), (4,))
        if plan.concurrency == (FIRST.shown_by.concurrency,) and not plan.options
    ]
    run = run_sweep(plan, tmp_path / "shown", jobs=2)
    (cause,) = [one for one in CAUSES if one.shown_by == FIRST.shown_by and one.fits(release)]
    monkeypatch.setattr(catalogue, "CAUSES", (cause,))
    (row,) = study.demonstrated(run).to_dict("records")
    assert row["removed"], row
