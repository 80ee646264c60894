"""How trials and sweeps end: deadlines, hangs, crashes and signals, each a row of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from support import NEWEST, ROOT, wait_for
from sweep_help import endless_workload, has_answered, sweep_and_signal

from analysis.recording.stream import read_stream
from analysis.runs.store import load_run
from analysis.sweep.plan import Plan
from analysis.sweep.process import TrialProcess
from analysis.sweep.runner import run_sweep


def test_a_trial_past_its_deadline_is_hung_and_keeps_what_it_finished_and_recorded(
    tmp_path, monkeypatch
):
    elapsed_s = TrialProcess.elapsed_s.fget

    def late_once_recorded(trial):
        """Add an hour as soon as the first answer is recorded, however long that takes."""
        streamed = read_stream(trial.directory)
        recorded = "invocations" in streamed and "done" in streamed["events"]["kind"].to_pylist()
        return elapsed_s(trial) + 3600 * (recorded and has_answered(tmp_path / "run"))

    monkeypatch.setattr(TrialProcess, "elapsed_s", property(late_once_recorded))
    plan = Plan(
        releases=(NEWEST,),
        concurrency=(1,),
        repeats=1,
        workload=str(endless_workload(tmp_path)),
        trial_timeout_s=300,
        observe="events",
    )
    run = run_sweep(plan, tmp_path / "run", progress=False)
    (trial,) = run.trials.itertuples()
    assert trial.status == "hung"
    # Threads that run on while their stacks are dumped can make the dump itself crash, just before
    # the kill; the trial is hung all the same.
    assert trial.exit_signal in (signal.SIGKILL, signal.SIGSEGV)
    assert "deadline of 300 s" in trial.status_detail
    assert trial.status_detail.endswith(".")
    stacks = tmp_path / "run" / "logs" / trial.trial_id / "stacks.txt"
    assert "clients.py" in stacks.read_text()
    assert list(run.requests["outcome"]) == ["ok", "timeout"]
    assert run.requests["text"][0] == "6 7 8"
    assert (run.events["kind"] == "done").sum() == 1
    assert len(run.invocations) > 0


def test_an_engine_that_answers_no_more_did_not_end_well(tmp_path):
    # Each request leaks its last page, so 24 of them leave none of the 16, however slow they are.
    plan = Plan(releases=(NEWEST,), concurrency=(2,), rounds=12, repeats=1, pages=(16,),
                request_timeout_s=4)  # fmt: skip
    run = run_sweep(plan, tmp_path / "run", progress=False)
    (trial,) = run.trials.itertuples()
    assert run.requests["outcome"].iloc[-1] not in {"ok", "wrong"}
    assert trial.status == "hung"
    assert trial.status_detail.startswith("The engine stopped answering: after the workload (")
    assert len(run.requests) == 24  # what it was asked beside them is no request of the run


def test_clients_in_a_hurry_do_not_make_an_engine_hang(tmp_path):
    # No engine makes so many tokens within so short a time, and no client is that late.
    plan = Plan(releases=(NEWEST,), concurrency=(4,), repeats=1, max_new_tokens=200,
                request_timeout_s=0.05)  # fmt: skip
    run = run_sweep(plan, tmp_path / "run", progress=False)
    assert set(run.requests["outcome"]) == {"timeout"}
    assert list(run.trials["status"]) == ["ok"]


@pytest.mark.slow
def test_a_stopped_trial_ends_at_its_deadline(tmp_path):
    plan = Plan(
        releases=(NEWEST,),
        concurrency=(1,),
        repeats=1,
        workload=str(endless_workload(tmp_path)),
        trial_timeout_s=20,
    )
    run = sweep_and_signal(plan, tmp_path / "run", signal.SIGSTOP)
    assert list(run.trials["status"]) == ["hung"]
    assert list(run.requests["outcome"]) == ["ok", "timeout"]


def test_a_crashed_trial_keeps_its_finished_requests(tmp_path):
    number = signal.SIGSEGV
    plan = Plan(
        releases=(NEWEST,), concurrency=(1,), repeats=1, workload=str(endless_workload(tmp_path))
    )
    run = sweep_and_signal(plan, tmp_path / "run", number)
    (trial,) = run.trials.itertuples()
    assert (trial.status, trial.exit_signal) == ("crashed", number)
    assert number.name in trial.status_detail
    assert trial.peak_rss_bytes > 10_000_000
    assert list(run.requests["outcome"]) == ["ok", "engine_died"]
    assert run.requests["text"][0] == "6 7 8"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_ended_leaves_a_valid_run_and_no_process(tmp_path, number):
    out = tmp_path / "run"
    sweep = subprocess.Popen(
        # A shell without job control starts its background jobs, this one perhaps, deaf to SIGINT.
        [sys.executable, "-c",
         "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
         "from analysis.cli import main\nmain()",
         "sweep", "--releases", NEWEST, "--concurrency", "1", "--repeats", "1",
         "--workload", str(endless_workload(tmp_path)), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        wait_for(lambda: has_answered(out) or sweep.poll() is not None, "a first answer")
        assert sweep.poll() is None
        started = psutil.Process(sweep.pid).children(recursive=True)
        assert started
        sweep.send_signal(number)
        _, stderr = sweep.communicate(timeout=60)
    finally:
        sweep.kill()
    wait_for(lambda: not any(_lives(process) for process in started), "the children's end")
    assert load_run(out).trials.empty
    assert "Traceback" not in stderr
    if number == signal.SIGINT:
        assert sweep.returncode == 130
        assert "Stopped with 0 of 1 trials" in stderr


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
