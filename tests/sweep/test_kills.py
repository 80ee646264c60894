"""Sweeps and trials killed at random moments: finished trials stay, lost ones are reported."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import NEWEST, RELEASES, ROOT, wait_for
from sweep_help import has_answered, sweep_and_signal

from analysis.diagnosis import explain
from analysis.runs.store import Run, RunWriter, load_run, read_manifest
from analysis.sanitizer.recorded import check_run
from analysis.sweep.plan import Plan

_LONGEST_S = 5.0
"""After its start, or after its first finished trial, a sweep is killed within this time."""


def _some_or(many: int, some: int) -> list[object]:
    return [some, pytest.param(many, marks=pytest.mark.hard)]


@pytest.mark.parametrize("kills", _some_or(100, 2))
def test_a_sweep_that_is_killed_again_and_again_keeps_every_finished_trial(tmp_path, kills, capsys):
    out, rng = tmp_path / "run", random.Random(kills)
    asked = tmp_path / "asked.jsonl"
    row = {"id": "r", "prompt": "1 2 3 4 5 ", "expected": "6 7 8", "max_new_tokens": 5}
    asked.write_text(json.dumps(row) + "\n")
    command = [
        sys.executable, "-c", "from analysis.cli import main\nmain()", "sweep",
        "--releases", NEWEST, "--concurrency", "1", "--repeats", "500", "--json",
        "--workload", str(asked), "--out", str(out),
    ]  # fmt: skip
    finished: set[str] = set()
    for number in range(kills):
        with (tmp_path / "output").open("wb") as output:
            sweep = subprocess.Popen(
                command, stdout=output, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        if number % 2 == 0:  # some must be finished, that they can be lost
            wait_for(lambda: (tmp_path / "output").stat().st_size, "a finished trial")
        time.sleep(rng.uniform(0, _LONGEST_S))
        assert sweep.poll() is None
        sweep.kill()
        sweep.wait(60)
        wait_for(lambda: not _processes_of(out), "the end of its trials")
        lines = (tmp_path / "output").read_text().splitlines(keepends=True)
        finished |= {json.loads(line)["trial_id"] for line in lines if line.endswith("\n")}
        run = load_run(out)
        assert finished <= set(run.trials["trial_id"])
        finished |= set(run.trials["trial_id"])
        # To be killed is no failure of an engine.
        assert set(run.trials["status"]) == {"ok"}
        assert set(run.requests["outcome"]) <= {"ok", "wrong"}
        assert len(run.requests) == len(run.trials)
    RunWriter.resume(out, read_manifest(out))
    assert not list(out.glob("trials/.*"))
    with capsys.disabled():
        sys.stdout.write(f" [{kills} kills, {len(finished)} trials finished, 0 lost] ")


def _processes_of(out: Path) -> list[int]:
    """Return the trials of a run in progress: their output is a file in it."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if str(out) in os.readlink(f"/proc/{pid}/fd/1"):
                found.append(pid)
    return found


@pytest.mark.parametrize("kills", _some_or(20, 2))
def test_a_killed_trial_is_recorded_up_to_a_stated_time(tmp_path, kills, capsys):
    rng, answered, lost, late_ms = random.Random(kills), 0, 0, []
    for number in range(kills):
        release = RELEASES[number % 2]
        plan = Plan(
            releases=(release,),
            concurrency=(4,),
            repeats=1,
            rounds=200,
            # One prompt, as the reference decoder takes minutes for 800 on a busy machine.
            workload="reported",
            observe="events",
            trial_timeout_s=600,
        )
        begun = time.monotonic()
        wait_s = rng.uniform(0.1, 3.0)

        def ready(out: Path, wait_s: float = wait_s) -> bool:
            nonlocal begun
            if not has_answered(out):
                begun = time.monotonic()
            return time.monotonic() - begun > wait_s

        how = (signal.SIGSEGV, signal.SIGKILL)[number // 2 % 2]
        out = tmp_path / f"run-{number}"
        run = sweep_and_signal(plan, out, how, ready)
        (trial,) = run.trials.itertuples()
        assert (trial.status, trial.exit_signal) == ("crashed", how)
        (cut,) = run.events[run.events["kind"] == "cut"].itertuples()
        assert "The recording ends at " in trial.status_detail
        _is_whole(run)
        ended = run.requests[run.requests["outcome"] != "engine_died"]
        missing = set(ended["request_id"]) - _ended(run)
        answered, lost = answered + len(ended), lost + len(missing)
        late_ms.append(round(cut.late_s * 1e3))
        # Whatever was under way there, no message says that the engine stopped with it.
        open_ = cut.request_ids
        assert open_
        (checked,) = check_run(out)
        assert not [key for key in checked.groups if key[0] == "stuck-request"]
        assert any(note.startswith("The recording ends at ") for note in checked.not_checked)
        under_way = next(r for r in open_ if r in set(run.requests["request_id"]))
        explanation = str(explain(run, under_way, reference=False))
        assert "The recording ends at " in explanation
        assert "Its last invocation was" not in explanation
    with capsys.disabled():
        sys.stdout.write(
            f" [{kills} kills: {lost} of {answered} answered requests have no end in the"
            f" recording; it ends up to {max(late_ms)} ms before the process] "
        )


def _is_whole(run: Run) -> None:
    """Hold every invocation to be recorded, and every token of a request that has its end there."""
    unfinished = run.events[run.events["kind"] == "invocation_unfinished"]["value"]
    executed = {*run.invocations["invocation_id"], *unfinished}
    assert executed == set(range(len(executed)))
    events = run.events
    tokens = events[events["kind"].isin(["first_token", "token"])].groupby("request_id").size()
    done = run.requests[run.requests["request_id"].isin(_ended(run))]
    assert len(done)
    had = tokens.reindex(done["request_id"])
    # 3.9.0 gives the last one with the answer only; the clients had what the recording has.
    lacking = {len(given) - seen for given, seen in zip(done["tokens"], had, strict=True)}
    assert lacking <= ({0}, {1})[done["trial_id"].iloc[0].startswith(NEWEST)]


def _ended(run: Run) -> set[str]:
    return set(run.events[run.events["kind"] == "done"]["request_id"])
