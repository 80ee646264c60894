"""Failed, accepted and rejected requests are counted alike wherever a count is printed."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import NEWEST, REPORTED, ROOT
from synthetic import make_run

from analysis.cli import main
from analysis.plots import failure_rate
from analysis.runs.schema import FAILURES, OUTCOMES, TABLES
from analysis.runs.store import Run, RunWriter, load_run
from analysis.runs.tables import count_requests
from analysis.sanitizer.recorded import Checked
from analysis.stats.rates import failure_rates
from analysis.studies.causes import scenarios
from analysis.studies.causes.words import counted_in_words
from analysis.studies.evictions.words import evictions_in_words
from analysis.studies.first_error.words import answer_in_a_sentence as findings_in_a_sentence
from analysis.studies.first_error.words import findings_in_words
from analysis.studies.reproduce.words import answer_in_a_sentence, answer_in_words
from analysis.sweep.estimate import Estimate
from analysis.sweep.plan import Plan
from analysis.sweep.progress import Progress
from analysis.sweep.rows import count_outcomes

KEY = (NEWEST, "none", 8)
MIXED = {"ok": 40, "wrong": 3, "timeout": 2, "rejected": 51}
"""5 of 45 accepted requests failed, 51 rejected."""


@pytest.fixture
def mixed() -> Run:
    return make_run({KEY: MIXED})


@given(st.lists(st.sampled_from(OUTCOMES)))
def test_every_outcome_is_right_failed_rejected_or_cancelled(outcomes: list[str]) -> None:
    counts = count_requests(outcomes)
    right = outcomes.count("ok") + outcomes.count("cancelled")
    assert counts.asked == right + counts.failed + counts.rejected == len(outcomes)
    assert counts.rejected == outcomes.count("rejected")
    assert counts.accepted == counts.asked - counts.rejected
    assert count_requests({name: outcomes.count(name) for name in OUTCOMES}) == counts


def test_what_failed_means_is_said_once(mixed: Run) -> None:
    assert set(FAILURES) == set(OUTCOMES) - {"ok", "rejected", "cancelled"}
    (row,) = failure_rates(mixed.requests, mixed.trials).to_dict("records")
    counts = count_requests(mixed.requests["outcome"])
    assert (row["failures"], row["n"], row["rejected"]) == (5, 96, 51)
    assert (counts.failed, counts.asked, counts.rejected) == (5, 96, 51)
    assert row["rate"] == counts.failed / counts.accepted


def _written(run: Run, place: Path) -> Run:
    """Return a run of one trial as it is read from disk."""
    [trial], requests = (
        pa.Table.from_pandas(frame, TABLES[name], preserve_index=False).to_pylist()
        for name, frame in (("trials", run.trials), ("requests", run.requests))
    )
    RunWriter.create(place, {"plan": {}, "seed": 0}).write_trial(trial, requests)
    return load_run(place)


@pytest.fixture
def sweep(monkeypatch, capsys, tmp_path, mixed):
    """Run `cachelab sweep` without its engines, with a run whose truth is known."""

    def run(**changes):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        written = _written(make_run({KEY: changes}, trials=1), place)
        monkeypatch.setattr("analysis.sweep.runner.run_sweep", lambda *_, **__: written)
        monkeypatch.setattr(
            "sys.argv", ["cachelab", "sweep", "--releases", NEWEST, "--out", str(place)]
        )
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    return run


def test_the_summary_of_a_sweep_counts_no_rejection_as_a_failure(sweep) -> None:
    fine, mixed = sweep(ok=480, rejected=264), sweep(**MIXED)
    assert ", 0 of 480 accepted requests failed, 264 rejected\n" in fine
    assert fine.endswith("No request failed.\n")
    assert ", 5 of 45 accepted requests failed, 51 rejected\n" in mixed


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_of_a_sweep_counts_neither_rejections_nor_planted_faults_as_failures(
    mixed: Run,
) -> None:
    plan = Plan(releases=(NEWEST,), concurrency=(8,), repeats=1)
    screen = _Screen()
    progress = Progress(3, Estimate(plan, 1), stream=screen)
    counts = count_outcomes(mixed.requests.to_dict("records"))
    progress.finished({"treatments": []}, counts, ())
    planted = count_outcomes([{"outcome": "wrong"}] * 7)
    progress.finished({"treatments": ["fault:seq-len-short"]}, planted, ())
    progress.running(plan.trials(), plan.trials())
    progress.close()
    assert "5 of 45 accepted requests failed, 51 rejected" in screen.getvalue()


def test_every_answer_shows_rejections_apart(mixed: Run) -> None:
    requests = mixed.requests.assign(evictions_during=0)
    checked = [Checked(NEWEST, "none", (), trials=4, controls=1, alarms=1)]
    assert "51 of 96 when offered 8" in answer_in_words(mixed)
    assert "51 rejected" in answer_in_a_sentence(mixed)
    assert "51 of 96 requests" in evictions_in_words(requests, mixed.trials)
    assert "| 51       |" in findings_in_words(mixed, checked)
    assert "51 rejected" in findings_in_a_sentence(mixed, checked)


def test_the_chart_says_what_its_rate_is_a_share_of(mixed: Run) -> None:
    (axes,) = failure_rate(mixed.requests, mixed.trials).axes
    assert "accepted" in axes.get_ylabel()
    assert "51 rejected" in axes.get_xlabel()
    (line,) = axes.containers[0].lines[:1]
    assert line.get_ydata()[0] == pytest.approx(5 / 45)


def test_the_table_of_results_is_what_the_shipped_run_says() -> None:
    run = load_run(ROOT / "data" / "reference")
    rows = failure_rates(run.requests, run.trials)
    levels = sorted(int(level) for level in rows["concurrency"].unique())
    table = [f"| | {' | '.join(map(str, levels))} |", "|---" * (len(levels) + 1) + "|"]
    for (release, sharing), own in rows.groupby(["release", "prefix_sharing"]):
        trials = []
        for row in own.sort_values("concurrency").to_dict("records"):
            aside = f" ({row['rejected']} rejected)" if row["rejected"] else ""
            trials.append(f"{row['failures']} of {row['n'] - row['rejected']}{aside}")
        table.append(f"| {release}, {sharing} | {' | '.join(trials)} |")
    assert "\n".join(table) + "\n" in (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_rates_of_the_documents_are_those_of_the_shipped_run(name: str) -> None:
    text = " ".join((ROOT / name).read_text().split())
    run = load_run(ROOT / "data" / "reference")
    rows = failure_rates(run.requests, run.trials).set_index(
        ["release", "prefix_sharing", "concurrency"]
    )
    for sharing in ("none", "trie"):
        one = rows.loc[(REPORTED, sharing, 8)]
        assert f"{one['rate']:.0%} ({one['low']:.0%} to {one['high']:.0%})" in text
    newest = rows.loc[NEWEST]
    assert newest["failures"].sum() == 0
    assert f"{(newest['n'] - newest['rejected']).sum()}" in text


def test_notebook_05_counts_failures_as_everywhere_and_says_what_its_verdicts_count() -> None:
    run = make_run({KEY: {"ok": 27, "timeout": 19, "rejected": 50}})
    (strict,) = scenarios(NEWEST, ["no sharing, 64 pages"])
    text = counted_in_words(strict, run)
    assert "Untreated, 19 of 46 accepted requests failed, 50 rejected." in text
    assert "count all 69 of 96 that got no right answer" in text
    (other,) = scenarios(REPORTED, ["no sharing"])
    assert counted_in_words(other, run).endswith("50 rejected.")
