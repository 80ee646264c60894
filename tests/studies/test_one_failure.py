"""Notebook 00: from a failed request to its suspects, and no more claimed than engines show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from calibration import failures
from synthetic import request_row, trial_row

from analysis.cli.explain import _command
from analysis.core.errors import RunError
from analysis.runs.store import to_frame
from analysis.studies import one_failure
from analysis.studies.one_failure import Tried, tried

ENGINES, REQUESTS = 9, 16


def compared(
    arms: Mapping[tuple[str, ...], Sequence[Mapping[str, int]]], concurrency: int = 4
) -> list[Tried]:
    """Return the verdicts on arms, each given by the outcomes of its engines."""
    trials, requests = [], []
    for arm, engines in arms.items():
        for repeat, counts in enumerate(engines):
            name = f"{'+'.join(arm)}-{repeat}"
            trials.append(trial_row(trial_id=name, treatments=list(arm), repeat=repeat,
                                    concurrency=concurrency))  # fmt: skip
            ends = [outcome for outcome, count in counts.items() for _ in range(count)]
            requests += [
                request_row(trial_id=name, request_id=f"r{number}", outcome=outcome)
                for number, outcome in enumerate(ends)
            ]
    return tried(to_frame("requests", requests), to_frame("trials", trials))


def drawn(rng: np.random.Generator, rate: float) -> list[dict[str, int]]:
    failed = failures(rng, rate, 0.1, REQUESTS, ENGINES)
    return [{"ok": REQUESTS - int(one), "wrong": int(one)} for one in failed]


def test_a_treatment_that_does_nothing_is_rarely_said_to_help() -> None:
    rng = np.random.default_rng(0)
    runs, claimed = 100, 0
    for _ in range(runs):
        found = compared({(): drawn(rng, 0.3), ("a",): drawn(rng, 0.3), ("b",): drawn(rng, 0.3)})
        claimed += any(one.status != "undecided" for one in found)
    assert claimed / runs < 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


def test_a_treatment_that_removes_the_failures_is_found() -> None:
    rng = np.random.default_rng(1)
    rates = {(): 0.6, ("a",): 0.0, ("b",): 0.2, ("a", "b"): 0.0}
    found = compared({arm: drawn(rng, rate) for arm, rate in rates.items()})
    assert [(one.treatments, one.status) for one in found] == [
        (("a",), "removed"), (("b",), "fewer"), (("a", "b"), "removed"),
    ]  # fmt: skip
    assert {one.pairs for one in found} == {ENGINES}


def test_more_failures_and_none_at_all() -> None:
    clean, bad = [{"ok": 8}] * ENGINES, [{"ok": 2, "timeout": 6}] * ENGINES
    assert [one.status for one in compared({(): clean, ("a",): bad})] == ["more"]
    assert [one.status for one in compared({(): clean, ("a",): clean})] == ["none failed"]
    assert tried(to_frame("requests", []), to_frame("trials", [])) == []


@pytest.mark.parametrize(("concurrency", "status"), [(4, "removed"), (8, "none failed")])
def test_a_rejection_is_a_failure_where_each_client_has_a_place(
    concurrency: int, status: str
) -> None:
    full, free = [{"ok": 4, "rejected": 4}] * ENGINES, [{"ok": 8}] * ENGINES
    [found] = compared({(): full, ("a",): free}, concurrency)
    assert found.status == status


def test_the_run_that_ships_is_explained_and_fixed() -> None:
    run, tested = one_failure.example()
    why = one_failure.explain_first(run, reference=False)
    assert why is not None
    first, *_ = found = one_failure.suspects(why)
    assert (first.finding, first.treatment) == ("page-leak (dropped)", "keep-decode-record")
    results = tried(tested.requests, tested.trials)
    assert [one.status for one in results] == ["removed", "fewer", "removed"]
    answer = one_failure.answer_in_a_sentence(why, results)
    assert "page-leak (dropped)" in answer
    assert "fixes it: with keep-decode-record 0 of 504" in answer
    plan = one_failure.treated_sweep(why, found)
    assert plan.repeats == ENGINES
    assert set(plan.treatments) == set(tested.trials["treatments"].map(tuple))
    assert _command(plan).startswith(f"cachelab sweep --releases {plan.releases[0]}")


def test_what_cannot_be_tested_is_refused() -> None:
    run, _ = one_failure.example()
    why = one_failure.explain_first(run, reference=False)
    assert why is not None
    with pytest.raises(RunError, match="No treatment is known"):
        one_failure.treated_sweep(why, [])
    unplanned = replace(run, manifest={**run.manifest, "plan": None})
    other = replace(why, trace=replace(why.trace, run=unplanned))
    with pytest.raises(RunError, match="has no plan"):
        one_failure.treated_sweep(other, one_failure.suspects(why))
    assert one_failure.suspects(None) == []
    assert one_failure.answer_in_a_sentence(None, []).startswith("No request failed.")
