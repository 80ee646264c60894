"""The lowest rung: the cache's operations by themselves, in a child process of the release."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.core import children
from analysis.shortfin.environments import python_of
from analysis.studies.validation.result import Isolated

_GRACE_S = 60.0
"""Beyond its own budget: it starts, minimises what failed, and says so."""


def examine(
    release: str, prefix_sharing: str, treatments: Sequence[str], budget_s: float, log: Path
) -> Isolated:
    """Examine the cache's operations for at most `budget_s` seconds, and a minute to spare.

    What the child printed is kept in `log`. Whatever goes wrong with it is in the result. Raises
    ReleaseError if the release has no environment here.
    """
    python = python_of(release)
    command = [str(python), "-m", "analysis.interleavings", "--prefix-sharing", prefix_sharing]
    command += ["--budget", f"{budget_s:g}", "--json"]
    command += ["--treatments", ",".join(treatments)] if treatments else []
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = children.start(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            said, _ = process.communicate(timeout=budget_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            problem = f"they did not end within {budget_s + _GRACE_S:g} s and were stopped."
            return Isolated(None, problem=problem, seconds=time.monotonic() - started)
        finally:
            children.kill_group(process)
    seconds = time.monotonic() - started
    try:
        return read(json.loads(said), seconds)
    except (ValueError, KeyError, TypeError, AttributeError):
        last = children.tail(log, 4000).strip().splitlines()
        why = last[-1].strip() if last else "it said nothing"
        problem = f"their examination ended with status {process.returncode}: {why}"
        return Isolated(None, problem=problem, seconds=seconds)


def read(said: Mapping[str, Any], seconds: float) -> Isolated:
    """Return what an examination said of itself; KeyError or TypeError if it is none."""
    ours, others = [], 0
    for failure in said["failures"]:
        if failure["reachable"]:
            ours.append(f"{failure['scenario']}: {failure['message']}")
        else:
            others += 1
    return Isolated(
        ok=not ours,
        interleavings=int(said["interleavings"]),
        complete=bool(said["complete"]),
        failures=tuple(ours),
        elsewhere=others,
        seconds=seconds,
    )
