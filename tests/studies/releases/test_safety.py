"""Which release is safe for what: on runs whose truth is known, and on the real engines."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import pytest
from support import NEWEST, REPORTED
from synthetic import make_run, request_row, trial_row

from analysis.runs.store import Run
from analysis.runs.tables import to_frame
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA
from analysis.studies import releases as study
from analysis.studies.releases.estimates import outside_difference, safety
from analysis.sweep.runner import run_sweep


def run_of(*trials: tuple[int, list[str], dict[str, Any]]) -> Run:
    """Return a run of trials: concurrency, outcomes, and changes of the trial's row."""
    rows, requests = [], []
    for number, (concurrency, outcomes, changes) in enumerate(trials):
        name = f"t{number}"
        settings = {"repeat": number, **changes}
        rows.append(trial_row(trial_id=name, concurrency=concurrency, **settings))
        requests += [
            request_row(trial_id=name, request_id=f"r{place}", outcome=outcome)
            for place, outcome in enumerate(outcomes)
        ]
    run = make_run({})
    return dataclasses.replace(
        run, trials=to_frame("trials", rows), requests=to_frame("requests", requests)
    )


def finding(trial_id: str, severity: str, cause: str = "overread") -> dict[str, Any]:
    return {"finding_id": f"{trial_id}-{cause}", "trial_id": trial_id, "rule": "seq-len-mismatch",
            "cause": cause, "severity": severity, "message": "it did"}  # fmt: skip


def test_a_release_without_any_problem_is_safe_at_every_level() -> None:
    run = run_of((1, ["ok"] * 4, {}), (4, ["ok"] * 4 + ["rejected"], {}))
    (one,) = safety(run)
    assert (one.up_to, one.beyond, one.problems) == (4, 0, ())
    assert (one.served.failures, one.served.n, one.rejected) == (0, 8, 1)


@pytest.mark.parametrize(
    ("outcomes", "changes", "severity", "words"),
    [
        (["ok", "wrong"], {}, None, "1 of 2 requests failed"),
        (["ok"], {"status": "hung"}, None, "1 engine hung"),
        (["ok"], {"status": "crashed"}, None, "1 engine crashed"),
        (["ok"], {}, WRONG_DATA, "wrong data read in 1 engine"),
    ],
)
def test_each_problem_ends_what_is_safe(outcomes, changes, severity, words) -> None:
    run = run_of((1, ["ok"] * 4, {}), (2, outcomes, changes), (4, ["ok"], {}))
    if severity:
        run = dataclasses.replace(run, findings=to_frame("findings", [finding("t1", severity)]))
    (one,) = safety(run)
    assert (one.up_to, one.beyond, one.problems) == (1, 2, (words,))
    assert (one.served.failures, one.served.n) == (0, 4)


def test_what_is_only_at_risk_is_no_problem() -> None:
    run = run_of((1, ["ok"], {}))
    run = dataclasses.replace(run, findings=to_frame("findings", [finding("t0", AT_RISK)]))
    assert safety(run)[0].up_to == 1


def test_the_answer_names_the_releases_that_are_safe() -> None:
    run = run_of(
        (1, ["ok"], {"release": "3.6.0"}), (4, ["ok"], {"release": "3.6.0"}),
        (1, ["ok"], {"release": "3.7.0"}), (4, ["wrong"], {"release": "3.7.0"}),
        (1, ["wrong"], {"release": "3.8.0"}), (4, ["wrong"], {"release": "3.8.0"}),
    )  # fmt: skip
    shown = pd.DataFrame({"name": ["a", "a", "b", "c"], "removed": [True, True, False, True]})
    assert study.answer_in_a_sentence(run, shown, beside([0] * 6, [0] * 6)) == (
        "Of 3 releases, 3.6.0 had no problem at any tested concurrency with any tested cache; with"
        " every tested cache, but only at lower concurrency: 3.7.0 up to 1. 2 of 3 suspected causes"
        " are shown by a few requests and removed by a treatment. The failure rate over HTTP"
        " is the same as in process (95% interval +0.0 to +0.0 points, 6 pairs of"
        " engines, p = 1)."
    )


def beside(engine: list[int], http: list[int]) -> Run:
    """Return a run with pairs of engines, of whose four requests so many failed."""
    trials = []
    for repeat, failed in enumerate(zip(engine, http, strict=True)):
        for target, number in zip(("engine", "http"), failed, strict=True):
            outcomes = ["wrong"] * number + ["ok"] * (4 - number)
            trials.append((4, outcomes, {"target": target, "repeat": repeat}))
    return run_of(*trials)


def test_a_difference_over_http_is_found_and_none_is_not() -> None:
    apart = outside_difference(beside([0, 0, 1, 0, 0, 0, 1, 0], [2, 3, 4, 2, 3, 2, 4, 3]))
    assert apart.pairs == 8
    assert 0 < apart.low < apart.mean < apart.high
    assert apart.p_value < 0.01
    same = outside_difference(beside([0, 1, 2, 0, 3, 1], [1, 0, 2, 1, 2, 1]))
    assert same.low < 0 < same.high
    assert same.p_value > 0.5
    assert outside_difference(beside([1], [1])).pairs == 0


def test_what_accepts_nothing_is_not_safe() -> None:
    (one,) = safety(run_of((1, ["rejected"] * 4, {})))
    assert (one.up_to, one.problems) == (0, ("no request was accepted",))


def test_a_cause_has_a_first_and_a_last_release() -> None:
    names = ["3.1.0", "3.2.0", "3.3.0", "3.4.0"]
    run = run_of(*[(1, ["ok"], {"release": name}) for name in names])
    rows = [finding("t0", AT_RISK), finding("t2", WRONG_DATA)]
    found = study.causes(dataclasses.replace(run, findings=to_frame("findings", rows)))
    assert list(found["found"]) == [1, 0, 1, 0]
    last = study.causes_in_words(found).splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells == [
        "seq-len-mismatch (overread)", "wrong data read", "3.1.0", "3.3.0", "3.2.0", "2 of 2",
    ]  # fmt: skip


def test_the_study_of_real_engines(tmp_path) -> None:
    plan = study.matrix((REPORTED, NEWEST), ("trie",), (256,), (4,), rounds=1, repeats=2)
    run = run_sweep(plan, tmp_path / "matrix", jobs=2, progress=False)
    settings = study.by_setting(run)
    assert list(settings["release"]) == [REPORTED, NEWEST]
    assert (settings["token_s"] > 0).all()
    assert settings["leaked"].notna().all()
    assert settings["wrong_data"].gt(0).tolist() == [True, False]
    found = study.causes(run)
    assert {"seq-len-mismatch", "wrong-kv-read"} <= set(found["rule"])
    assert len(study.safety_in_words(run).splitlines()) == 4
    for figure in (
        study.outcomes_figure(run.requests, run.trials),
        study.causes_figure(found),
        study.costs_figure(settings),
    ):
        assert figure.axes
