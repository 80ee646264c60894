"""Staged validations on real engines, and settings that are refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from support import NEWEST, REPORTED, has
from typer.testing import CliRunner

from analysis.cli import app
from analysis.core.errors import CachelabError, EngineError, ModelError, ReleaseError, WorkloadError
from analysis.runs.tables import is_control
from analysis.studies.validation import plan as plans
from analysis.studies.validation.evidence import isolated_of
from analysis.studies.validation.plan import Settings, ValidationError
from analysis.studies.validation.run import examine, jobs_of, run_level, validate
from analysis.studies.validation.words import in_words
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.runner import run_sweep
from analysis.treatments import expand, fixes
from analysis.workloads.named import WORKLOADS

QUICK: dict[str, Any] = {"rate": 0.2, "per_trial": 8}
"""14 accepted requests a level at least, on six engines."""
MIXED: dict[str, Any] = {**QUICK, "workload": "mixed"}
"""Of one workload, so that six engines do for a level."""


@pytest.fixture
def two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines do for a level, where it is not their number that matters."""
    monkeypatch.setattr(plans, "FEWEST_ENGINES", 2)


def test_all_fixes_of_the_reported_release_are_validated_and_a_second_sitting_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    settings = Settings(release=REPORTED, treatments=fixes(REPORTED, "none"), levels=(4,),
                        isolated_s=60, **MIXED)  # fmt: skip
    steps: list[str] = []
    validation = validate(
        settings, tmp_path / "out", jobs=2, on_step=lambda s: steps.append(s.verdict)
    )
    assert validation.verdict == "validated", in_words(validation)
    assert steps == ["clean"] * 2
    assert [level.concurrency for level in validation.results] == [4]
    assert all(level.accepted == 48 and level.detected == 1 for level in validation.results)
    assert validation.isolated is not None
    assert validation.isolated.interleavings > 1000
    assert json.loads((tmp_path / "out" / "result.json").read_text())["verdict"] == "validated"
    # Read back from disk; no time is given to start anything.
    again = validate(settings, tmp_path / "out", budget_s=60)
    assert again.results == validation.results
    assert again.isolated == validation.isolated
    with pytest.raises(ValidationError, match=r"another validation \(seed there 0, here"):
        validate(Settings(**{**vars(settings), "seed": 1}), tmp_path / "out")


def test_one_fix_alone_fails_the_first_level_which_is_explained(tmp_path: Path) -> None:
    settings = Settings(release=REPORTED, prefix_sharing="trie", treatments=("correct-seq-lens",),
                        levels=(4, 8), isolated_s=0, **MIXED)  # fmt: skip
    validation = validate(settings, tmp_path / "out", jobs=1)
    assert validation.verdict == "failed"
    [level] = validation.results
    # The first engine showed it, so the second one was not started.
    assert (level.trials, level.accepted) == (1, 8)
    assert "page-leak" in {found.rule for found in level.findings}
    assert level.leaked
    assert level.failing is not None
    assert level.failing[1] in level.explanation


@pytest.mark.usefixtures("two_engines")
def test_all_fixes_of_the_newest_release_are_validated_although_it_refuses_requests(
    tmp_path: Path,
) -> None:
    settings = Settings(release=NEWEST, treatments=fixes(NEWEST, "none"), levels=(8,),
                        isolated_s=0, **MIXED)  # fmt: skip
    validation = validate(settings, tmp_path / "out", jobs=2)
    assert validation.verdict == "validated", in_words(validation)
    [level] = validation.results
    # Every refused one came back until it was taken.
    assert (level.accepted, level.rejected) == (32, 0)
    assert level.retries > 0


@pytest.mark.usefixtures("two_engines")
@pytest.mark.parametrize("sharing", ["none", "trie"])
@pytest.mark.parametrize(("left_out", "verdict"), [(True, "failed"), (False, "validated")])
def test_continued_answers_tell_whether_a_fix_is_missing(
    tmp_path: Path, left_out: bool, verdict: str, sharing: str
) -> None:
    names = expand(("all-but:delist-freed-pages" if left_out else "all",), NEWEST, sharing)
    settings = Settings(release=NEWEST, prefix_sharing=sharing, treatments=names, levels=(4,),
                        workload="identical_then_continued", isolated_s=0, rate=0.1)  # fmt: skip
    validation = validate(settings, tmp_path / "out", jobs=2)
    assert validation.verdict == verdict, in_words(validation)
    [level] = validation.results
    causes = {(found.rule, found.cause) for found in level.findings}
    assert (("double-allocation", "same-request") in causes) == left_out
    # Without the trie a page that is named twice does no harm by itself.
    harmed = left_out and sharing == "trie"
    assert (("cached-prefix-mismatch", "other-prefix") in causes) == harmed
    assert bool(level.failures) == harmed


def test_no_time_is_undecided_and_starts_no_engine(tmp_path: Path) -> None:
    settings = Settings(release=REPORTED, levels=(4,), isolated_s=0, **QUICK)
    validation = validate(settings, tmp_path / "out", budget_s=0)
    assert (validation.verdict, validation.out_of_time, validation.results) == (
        "undecided",
        True,
        (),
    )


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"release": "3.0.0"}, ReleaseError, "not a known release"),
        ({"rate": 0}, ValidationError, "between 0 and 1"),
        ({"levels": (4, 4)}, ValidationError, "ascending"),
        ({"treatments": ("fault:seq-len-short",)}, ValidationError, "injects a fault"),
        ({"tolerate": {("page-leak", "x"): " "}}, ValidationError, "Give the reason"),
        ({"isolated_s": -1}, ValidationError, "from 0 to"),
        ({"treatments": ("nonsense",)}, PlanError, "Unknown treatment 'nonsense'"),
        ({"treatments": ("copy-tokens",)}, PlanError, "needs prefix sharing trie"),
        ({"request_timeout_s": 0}, PlanError, "more than 0"),
        ({"workload": "absent.jsonl"}, WorkloadError, "Unknown workload 'absent.jsonl'"),
        ({"batch_sizes": (0,)}, PlanError, "`--batch-sizes` must be from 1"),
        ({"model": "absent"}, ModelError, "no model of that name"),
        ({"prefix_sharing": "tree"}, EngineError, "Choose none or trie"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict, error: type[CachelabError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        validate(Settings(**{"release": REPORTED, **changes}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_workload_file_is_sent_whole_with_the_given_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} "}) + "\n" for n in range(20)))
    settings = Settings(release=REPORTED, levels=(2, 4), rate=0.01, workload=str(file),
                        batch_sizes=(1, 4), max_new_tokens=5)  # fmt: skip
    for level, plan in settings.plans().items():
        assert (plan.workload, plan.rounds, plan.concurrency) == (str(file), None, (level,))
        assert (plan.batch_sizes, plan.max_new_tokens) == ((1, 4), 5)
        assert plan.repeats * 20 >= settings.needed > (plan.repeats - 1) * 20
    before = settings.place(tmp_path / "out")
    file.write_text(json.dumps({"prompt": "1 "}) + "\n")
    assert settings.place(tmp_path / "out") != before
    # Settings of before these options have the same place as then.
    assert (
        not {"batch_sizes", "model", "workload_sha256"}
        & Settings(release=REPORTED).as_dict().keys()
    )


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValidationError, match="holds something else"):
        validate(Settings(release=REPORTED), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("level", [2, 4, 8, 16, 32])
def test_a_level_has_enough_requests_on_several_fresh_engines(level: int) -> None:
    plan = Settings(release=REPORTED, workload="mixed").plan(level)
    own = [trial for trial in plan.trials() if not is_control(trial.treatments)]
    assert len(own) * plan.request_count(level) >= 299
    assert len(own) >= 6
    assert (len(own) - 1) * plan.request_count(level) < 299 or len(own) == 6
    assert sum(is_control(trial.treatments) for trial in plan.trials()) == 1
    assert plan.resubmit_s


def test_every_level_asks_every_workload_of_fresh_engines() -> None:
    for settings in (Settings(release=NEWEST, prefix_sharing="trie"),
                     Settings(release=REPORTED, **QUICK)):  # fmt: skip
        for level in settings.levels:
            plan = settings.plan(level)
            asked = [
                plan.workload_of(c.repeat) for c in plan.trials() if not is_control(c.treatments)
            ]
            missing = {*WORKLOADS}.difference(asked)
            for_two = set() if level == 2 else {"evict_after_lookup"}
            newer = {"forks", "bursts", "cancelled"}  # than the shipped validation
            assert missing == newer | for_two
            counts = [asked.count(name) for name in {*asked}]
            assert max(counts) - min(counts) <= 1
            assert plan.rounds is not None
            assert plan.rounds % 2 == 0  # so that no continuation is asked before its answer
            # With strobes a token takes half a second where a batch has room.
            slowest = 80 * (0.5 if has(settings.release, "allocations") else 0.005)
            assert plan.request_timeout_s >= 60
            assert plan.request_timeout_s > 2 * slowest
            assert plan.trial_timeout_s > 2 * plan.rounds * slowest


def test_a_level_that_lacks_a_workload_is_undecided(tmp_path: Path) -> None:
    settings = Settings(release=REPORTED, levels=(4,), treatments=fixes(REPORTED, "none"),
                        workload="mixed+reported", rate=0.2, isolated_s=0)  # fmt: skip
    plan, asked = settings.plan(4), list[str]()
    run_sweep(
        plan,
        tmp_path / "level-04",
        on_trial=lambda trial, _: asked.append(trial["workload"]),
        stop=lambda: len(asked) == 2,
        progress=False,
    )
    assert asked == ["mixed", "mixed"]  # the control, and one engine
    level = run_level(settings, plan, tmp_path, jobs=1, ends=time.monotonic())
    assert (level.accepted, level.needed, level.failed) == (32, 14, 0)
    assert level.unchecked == ("Time ran out before these workloads: reported.",)
    assert level.verdict == "undecided"


@pytest.mark.parametrize(
    ("release", "level", "jobs"),
    [(REPORTED, 2, 8), (REPORTED, 4, os.cpu_count()), (NEWEST, 2, os.cpu_count())],
)
def test_more_engines_run_at_once_where_they_wait_rather_than_work(
    release: str, level: int, jobs: int
) -> None:
    assert jobs_of(Settings(release=release).plan(level)) == jobs


def test_refused_requests_stay_refused_unless_a_plan_says_otherwise() -> None:
    assert "resubmit_s" not in Plan(releases=(NEWEST,)).as_dict()
    assert Plan(releases=(NEWEST,), resubmit_s=0.5).as_dict()["resubmit_s"] == 0.5
    with pytest.raises(PlanError, match="`--resubmit` must be more than 0"):
        Plan(releases=(NEWEST,), resubmit_s=0)


def test_only_what_can_happen_on_the_threads_of_the_release_fails_the_lowest_level() -> None:
    failure = {"scenario": "equal prompts", "message": "Page 4 is lost.", "schedule": "A B"}
    output = {"interleavings": 70, "complete": True,
            "failures": [{**failure, "reachable": False}]}  # fmt: skip
    isolated = isolated_of(output, 1.5)
    assert (isolated.verdict, isolated.unreachable, isolated.interleavings) == ("clean", 1, 70)
    output["failures"].append({**failure, "reachable": True})
    isolated = isolated_of(output, 1.5)
    assert isolated.verdict == "failed"
    assert isolated.failures == ("equal prompts: Page 4 is lost.",)


def test_an_examination_that_fails_proves_nothing() -> None:
    isolated = examine(Settings(release=REPORTED, treatments=("nonsense",)), 5)
    assert isolated.verdict == "undecided"
    assert "Unknown treatment 'nonsense'" in isolated.problem


def test_the_command_line_names_what_is_wrong_and_ends_with_the_verdicts_status(
    tmp_path: Path,
) -> None:
    run = CliRunner().invoke
    result = run(app, ["validate", "--release", REPORTED, "--tolerate", "page-leak"])
    assert "takes RULE:CAUSE=REASON" in str(result.exception)
    command = ["validate", "--release", REPORTED, "--isolated", "0", "--time-budget", "0", "--json",
               "--out", str(tmp_path / "out"),
               "--tolerate", "page-leak:x=it is a trial"]  # fmt: skip
    result = run(app, command)
    assert result.exit_code == 3
    assert json.loads(result.stdout)["verdict"] == "undecided"
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["tolerate"] == [["page-leak", "x", "it is a trial"]]
    assert settings["treatments"] == list(fixes(REPORTED, "none"))
