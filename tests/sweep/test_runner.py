"""Real engines in child processes: every trial becomes a row, whatever happens to its process."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import psutil
import pytest
from support import NEWEST, REPORTED

from analysis.core.errors import EngineError, MachineError, RunError
from analysis.runs.store import OUTCOMES, load_run
from analysis.runs.tables import arm_of, is_control
from analysis.sanitizer.recorded import controls_of
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.prepare import Prepared
from analysis.sweep.process import TrialProcess
from analysis.sweep.rows import Ended
from analysis.sweep.runner import run_sweep
from analysis.treatments.faults import TRIES
from analysis.workloads.workload import Request, Workload

FAST = Plan(releases=(REPORTED, NEWEST), concurrency=(4,), repeats=1, seed=1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One trial on each release, both at once."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    reported = []
    run = run_sweep(
        FAST,
        out,
        jobs=2,
        on_trial=lambda row, counts: reported.append((row, counts)),
        progress=False,
    )
    return out, run, reported


def test_trials_end_normally_and_have_their_settings(swept):
    _, run, reported = swept
    assert set(run.trials["trial_id"]) == {
        f"{REPORTED}-none-p256-c4-r0",
        f"{NEWEST}-none-p256-c4-r0",
    }
    assert set(run.trials["status"]) == {"ok"}
    assert (run.trials["peak_rss_bytes"] > 10_000_000).all()
    assert (run.trials["duration_s"] > 0).all()
    assert set(run.trials["device"]) <= {"local-task", "amdgpu"}
    assert set(run.trials["run_id"]) == {run.manifest["run_id"]}
    assert run.manifest["plan"]["concurrency"] == [4]
    assert run.manifest["dropped_prompts"] >= 0
    assert sorted(row["trial_id"] for row, _ in reported) == sorted(run.trials["trial_id"])
    assert all(set(counts) == set(OUTCOMES) for _, counts in reported)


def test_every_release_is_asked_the_same(swept):
    _, run, _ = swept
    asked = {
        release: list(run.requests[run.requests["trial_id"].str.startswith(release)]["prompt"])
        for release in FAST.releases
    }
    assert asked[REPORTED] == asked[NEWEST]
    assert len(set(asked[REPORTED])) == 4
    assert list(run.requests["client"]) == [0, 1, 2, 3] * 2


def test_what_is_asked_the_model_itself_answers_right(swept):
    _, run, _ = swept
    from analysis.model.artifacts import load_model
    from analysis.model.tokenizer import ModelTokenizer

    decode = ModelTokenizer(load_model()).decode
    for row in run.requests.itertuples():
        assert decode(row.reference_tokens) == row.expected_text


def test_the_newest_release_answers_four_clients_right(swept):
    _, run, _ = swept
    newest = run.requests[run.requests["trial_id"].str.startswith(NEWEST)]
    assert set(newest["outcome"]) == {"ok"}
    assert newest["first_divergence"].isna().all()
    assert list(newest["tokens"]) == list(newest["reference_tokens"])


def test_a_finished_sweep_is_not_run_again(swept):
    out, run, _ = swept
    reported = []
    again = run_sweep(FAST, out, on_trial=lambda *trial: reported.append(trial), progress=False)
    assert reported == []
    assert again.trials.equals(run.trials)
    assert sorted(path.name for path in out.iterdir()) == [
        ".sweep.lock",
        "manifest.json",
        "trials",
    ]


def test_what_is_missing_is_run_and_the_rest_is_kept(swept, tmp_path):
    import shutil

    out, run, _ = swept
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "trials" / f"{NEWEST}-none-p256-c4-r0")
    reported = []
    again = run_sweep(FAST, copy, on_trial=lambda row, _: reported.append(row), progress=False)
    assert [row["trial_id"] for row in reported] == [f"{NEWEST}-none-p256-c4-r0"]
    assert list(again.requests["prompt"]) == list(run.requests["prompt"])


def test_another_plan_is_refused_in_the_same_place(swept):
    out, _, _ = swept
    with pytest.raises(RunError, match=r"another plan \(.*concurrency there \[4\], here \[1, 2,"):
        run_sweep(Plan(releases=(NEWEST,)), out, progress=False)


def test_each_plan_has_a_place_of_its_own(tmp_path):
    place = FAST.place(tmp_path / "sweep")
    assert place.name.startswith("sweep-")
    assert place == replace(FAST).place(str(tmp_path / "sweep"))
    others = [replace(FAST, seed=2), replace(FAST, concurrency=(4, 8)), replace(FAST, rounds=2)]
    assert len({place, *(plan.place(tmp_path / "sweep") for plan in others)}) == 4


def test_resuming_a_run_is_reported(swept, capsys):
    out, _, _ = swept
    run_sweep(FAST, out)
    assert capsys.readouterr().err == f"{out}: 2 of 2 trials are already on disk\n"


def test_two_sweeps_cannot_write_to_one_run(swept):
    import fcntl

    out, _, _ = swept
    with open(out / ".sweep.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="Another sweep"):
            run_sweep(FAST, out, progress=False)


@pytest.mark.parametrize("interrupted", [False, True])
def test_if_a_fault_cannot_be_injected_another_is_tried(tmp_path, monkeypatch, interrupted):
    planted = []

    class Reported:
        """A trial that ends at once; only the third fault of the untreated arm is injected."""

        elapsed_s = 1.0

        def __init__(self, servers, python, spec, directory, timeout_s):
            self.names = tuple(spec["treatments"])

        def poll(self):
            return True

        def ended(self):
            if not is_control(self.names):
                return Ended([], 1.0)
            arm = arm_of(self.names)
            planted.append((arm, self.names[-1]))
            injects = not arm and len([one for one, _ in planted if not one]) == 3
            return Ended([], 1.0, facts={"injected": {"page": 1} if injects else None})

        def kill(self):
            pass

    asked = Workload("w", (Request("r", "1 2 3 ", 2, "4 5"),))
    prepared = Prepared({(1, 0): asked, (1, 1): asked}, {REPORTED: {}}, 0)
    monkeypatch.setattr("analysis.sweep.runner.TrialProcess", Reported)
    monkeypatch.setattr("analysis.sweep.runner.prepare", lambda *_: prepared)
    plan = Plan(releases=(REPORTED,), concurrency=(1,), repeats=2, sanitize=True,
                treatments=((), ("lock-cache",)))  # fmt: skip
    out = tmp_path / "run"
    if interrupted:
        begun = run_sweep(plan, out, progress=False, stop=lambda: len(planted) == 1)
        assert len(begun.trials) == 0
    run = run_sweep(plan, out, jobs=2, progress=False)
    assert len(run.trials) == 4
    controls = controls_of(out)
    assert sorted((c.arm, c.fault) for c in controls) == sorted(planted)
    assert [(c.arm, c.injected) for c in controls if c.arm] == [(("lock-cache",), False)] * TRIES
    assert sorted(c.injected for c in controls if not c.arm) == [False, False, True]
    assert len(set(planted)) == 6
    run_sweep(plan, out, progress=False)
    assert len(planted) == 6


def test_a_trial_that_a_full_disk_stopped_is_no_failure_and_is_run_again(
    tmp_path, monkeypatch, capsys
):
    started, full = [], [True, True, True, False]

    class Started(TrialProcess):
        """A trial of which some may write no file of more than 300 bytes, as on a full disk."""

        def __init__(self, *asked):
            super().__init__(*asked)
            started.append(self.pid)
            if full[len(started) - 1]:
                psutil.Process(self.pid).rlimit(psutil.RLIMIT_FSIZE, (300, 300))

    monkeypatch.setattr("analysis.sweep.runner.TrialProcess", Started)
    monkeypatch.setattr("analysis.sweep.runner._PAUSE_S", 0.1)
    # A row of `requests` is longer than that.
    plan = Plan(releases=(NEWEST,), concurrency=(1,), repeats=1, observe="events")
    with pytest.raises(MachineError, match=r"1 of 1 trials .* could not run them") as raised:
        run_sweep(plan, tmp_path / "run")
    assert os.strerror(errno.ENOSPC) in str(raised.value)
    assert len(started) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"{tmp_path / 'run'}: new run of 1 trial\n")
    assert "it is retried in 0.1 s" in output
    assert load_run(tmp_path / "run").requests.empty
    run = run_sweep(plan, tmp_path / "run", progress=False)
    assert len(started) == 4
    assert list(run.trials["status"]) == ["ok"]
    assert list(run.requests["outcome"]) == ["ok"]


class Short:
    """Stands for trials that this machine cannot even start, but for the chosen ones."""

    elapsed_s = 1.0

    def __init__(self, servers, python, spec, directory, timeout_s):
        self.asked.append(spec["trial_id"])
        if not spec["trial_id"].endswith(self.runs):
            raise OSError(errno.EMFILE, "too many", str(directory))

    def poll(self):
        return True

    def ended(self):
        return Ended([], 1.0)

    def kill(self):
        pass


@pytest.mark.parametrize(("runs", "tries"), [("r1", 9), ("none", 6)])
def test_a_trial_that_cannot_be_run_is_tried_twice(tmp_path, monkeypatch, runs, tries):
    asked = Workload("w", (Request("r", "1 2 3 ", 2, "4 5"),))
    prepared = Prepared({(1, r): asked for r in range(5)}, {REPORTED: {}}, 0)
    monkeypatch.setattr("analysis.sweep.runner.TrialProcess", Short)
    monkeypatch.setattr("analysis.sweep.runner.prepare", lambda *_: prepared)
    monkeypatch.setattr("analysis.sweep.runner._PAUSE_S", 0.0)
    monkeypatch.setattr(Short, "asked", [], raising=False)
    monkeypatch.setattr(Short, "runs", runs, raising=False)
    plan = Plan(releases=(REPORTED,), concurrency=(1,), repeats=5)
    # Three that could not be run in a row are enough.
    with pytest.raises(MachineError, match=f"{5 - (runs == 'r1')} of 5 trials are not in"):
        run_sweep(plan, tmp_path / "run", progress=False)
    assert len(Short.asked) == tries
    assert list(load_run(tmp_path / "run").trials["repeat"]) == [1] * (runs == "r1")


def test_a_failing_report_does_not_undo_a_stored_trial(tmp_path, monkeypatch):
    plan = replace(FAST, releases=(NEWEST,))
    monkeypatch.setattr("analysis.sweep.runner.TrialProcess", Short)
    monkeypatch.setattr(Short, "runs", "r0", raising=False)
    monkeypatch.setattr(Short, "asked", [], raising=False)

    def full(row, counts):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        run_sweep(plan, tmp_path / "run", on_trial=full, progress=False)
    assert len(Short.asked) == 1
    assert len(load_run(tmp_path / "run").trials) == 1


def test_an_option_that_the_release_does_not_offer_ends_the_sweep(tmp_path):
    plan = Plan(releases=(NEWEST,), concurrency=(1,), repeats=1, options={"no_such": 1})
    with pytest.raises(EngineError, match="no_such"):
        run_sweep(plan, tmp_path / "run", progress=False)
    assert load_run(tmp_path / "run").trials.empty


def test_in_a_kernel_only_its_own_release_can_run(tmp_path):
    with pytest.raises(PlanError, match="This process can run only shortfin"):
        run_sweep(FAST, tmp_path / "run", runner="kernel", progress=False)
    assert not (tmp_path / "run").exists()
