"""A cell that is surely still in progress, on any machine: its second request is never sent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 120.0


def endless_workload(directory: Path) -> Path:
    """Write two requests of which the second arrives hours after the first."""
    path = directory / "endless.jsonl"
    rows = [
        {"id": "first", "prompt": "1 2 3 4 5 ", "expected": "6 7 8"},
        {"id": "never", "prompt": "1 2 3 4 5 ", "expected": "6 7 8", "arrival_s": 10_000},
    ]
    path.write_text("".join(json.dumps({**row, "max_new_tokens": 5}) + "\n" for row in rows))
    return path


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; a deadline turns a bug into a failure."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.05)


def has_answered(out: Path) -> bool:
    """Return whether the cell in progress has finished a request."""
    return any(file.stat().st_size for file in out.glob("work/*/requests.jsonl"))
