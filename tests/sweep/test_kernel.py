"""Trials in the very process that asks for them, as notebooks run them."""

from __future__ import annotations

import errno

import pytest
from support import NEWEST, ChildRunner
from sweep_help import endless_workload

from analysis.core.errors import EngineError, MachineError
from analysis.runs.store import load_run
from analysis.sweep import kernel

_SWEEP = """
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
run = run_sweep(
    Plan(releases=({release!r},), concurrency=(4,), repeats=2, workload={workload!r}, seed=2),
    {out!r}, runner="kernel", progress=False,
    on_trial=lambda row, counts: rows.append([row["trial_id"], row["status"], os.getpid()]),
)
"""


def test_trials_run_one_after_another_in_this_process(child: ChildRunner, release, tmp_path):
    out = str(tmp_path / "run")
    sweep = _SWEEP.format(release=release, workload="reported", out=out)
    ended = child(release, f"rows = []\n{sweep}\nfirst, rows = rows, []\n{sweep}\n"
                           "say([os.getpid(), first, rows])")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    pid, first, second = ended.reply
    assert [(status, where) for _, status, where in first] == [("ok", pid)] * 2
    assert second == []
    run = load_run(out)
    assert len(run.requests) == 8
    assert set(run.trials["release"]) == {release}


def test_in_a_kernel_too_a_full_disk_is_no_failure(tmp_path, monkeypatch):
    def full(spec, directory):
        error = OSError(errno.ENOSPC, "No space left on device")
        raise EngineError("The engine could not be started.") from error

    monkeypatch.setattr(kernel, "ask", full)
    with pytest.raises(MachineError, match="No space left"):
        kernel.run_trial({}, tmp_path / "work")
    assert kernel._ended_before(tmp_path / "work") is None  # so that it is run anew


_FREEZE = """
import ctypes, threading, time
def freeze():
    while not any(f.stat().st_size for f in Path({out!r}).glob("work/*/answers.jsonl")):
        time.sleep(0.05)
    ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the GIL
threading.Thread(target=freeze, daemon=True).start()
"""


@pytest.mark.slow
def test_a_freeze_that_killed_the_process_is_reported_afterwards(child: ChildRunner, tmp_path):
    out, workload = str(tmp_path / "run"), str(endless_workload(tmp_path))
    sweep = (
        "rows = []\nfrom analysis.sweep.plan import Plan\n"
        "from analysis.sweep.runner import run_sweep\n"
        f"run_sweep(Plan(releases=({NEWEST!r},), concurrency=(1,), repeats=1,"
        f" workload={workload!r}), {out!r}, runner='kernel', progress=False)\n"
    )
    frozen = child(NEWEST, _FREEZE.format(out=out) + sweep)
    assert frozen.returncode == -9
    assert load_run(out).trials.empty
    again = child(NEWEST, sweep)
    assert again.returncode == 0, again.stderr
    run = load_run(out)
    assert list(run.trials["status"]) == ["hung"]
    assert "froze" in run.trials["status_detail"][0]
    assert list(run.requests["outcome"]) == ["ok", "timeout"]
    assert list((tmp_path / "run" / "logs").glob("*/watchdog-*.txt"))
