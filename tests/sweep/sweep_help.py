"""A trial that is surely still in progress, on any machine: its second request is never sent."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
from support import wait_for

from analysis.runs.store import Run
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep


def endless_workload(directory: Path) -> Path:
    """Write two requests of which the second arrives hours after the first."""
    path = directory / "endless.jsonl"
    rows = [
        {"id": "first", "prompt": "1 2 3 4 5 ", "expected": "6 7 8"},
        {"id": "never", "prompt": "1 2 3 4 5 ", "expected": "6 7 8", "arrival_s": 10_000},
    ]
    path.write_text("".join(json.dumps({**row, "max_new_tokens": 5}) + "\n" for row in rows))
    return path


def has_answered(out: Path) -> bool:
    """Return whether the trial in progress has finished a request."""
    return any(file.stat().st_size for file in out.glob("work/*/answers.jsonl"))


def sweep_and_signal(
    plan: Plan, out: Path, number: signal.Signals, ready: Callable[[Path], object] = has_answered
) -> Run:
    """Run a sweep of one trial, and send its process a signal once `ready(out)` says so."""
    me, seen = psutil.Process(), []

    def kill() -> None:
        wait_for(lambda: ready(out), "the trial in progress")
        servers = [p for p in me.children() if "analysis.core.fork_server" in p.cmdline()]
        (trial,) = (trial for server in servers for trial in server.children())
        seen.append(trial.pid)
        trial.send_signal(number)

    thread = threading.Thread(target=kill)
    thread.start()
    run = run_sweep(plan, out, progress=False)
    thread.join()
    assert seen
    return run
