"""One engine under stress: `python -m analysis.studies.validation.soak.child SPEC LINES LOGS`.

Each iteration is a line of JSON the moment it ends, so that nothing is lost if the process is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import IO, Any

from analysis.core import children
from analysis.core.errors import CachelabError
from analysis.workloads.workload import Request, Workload

_REST_S = 1.0
"""How long the pages may take to come back once everybody has an answer."""


def ask_until(spec: Mapping[str, Any], lines: IO[bytes], logs: Path) -> None:
    """Ask one engine the workloads of a specification in turn, until its time is up."""
    from analysis.engine import Engine, EngineConfig
    from analysis.treatments import treat

    workloads = [
        Workload("stress", tuple(Request(**row) for row in rows)) for rows in spec["workloads"]
    ]

    def say(row: Mapping[str, Any]) -> None:
        lines.write(json.dumps(row).encode() + b"\n")

    with (
        Engine(EngineConfig.from_json(spec["config"]), log_dir=logs) as engine,
        treat(engine, *spec["treatments"]),
    ):
        started = time.monotonic()
        say({"begun": True})
        for number, workload in enumerate(cycle(workloads)):
            begun = time.monotonic() - started
            if begun >= spec["seconds"]:
                return
            answers: list[dict[str, Any]] = []
            engine.run(
                workload,
                concurrency=spec["level"],
                timeout_s=spec["request_timeout_s"],
                on_result=answers.append,
                resubmit_s=spec["resubmit_s"],
            )
            ended = time.monotonic() - started
            kept = ("request_id", "outcome", "text", "tokens", "latency_s", "ttft_s", "retries")
            say(
                {
                    "iteration": number,
                    "begun_s": begun,
                    "ended_s": ended,
                    "workload": number % len(workloads),
                    "answers": [{name: row[name] for name in kept} for row in answers],
                    **_rest(engine),
                }
            )
            if engine.died is not None:
                say({"ending": f"The engine died: {engine.died.message}"})
                return
            if all(row["outcome"] not in ("ok", "wrong") for row in answers):
                say({"ending": "Nothing was answered any more."})
                return


def _rest(engine: Any) -> dict[str, Any]:
    """Return memory and pages with nobody served; what an engine still does gets a moment."""
    deadline = time.monotonic() + _REST_S
    while True:
        counts = engine.cache.snapshot().counts
        if not counts["live"] or time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    pages = {name: int(counts[name]) for name in ("free", "cached", "live", "leaked")}
    return {"rss_bytes": resident, **pages}


def main(spec_file: Path, lines_file: Path, logs: Path) -> int:
    """Run what a specification says; what the user can mend becomes a line, too."""
    spec = json.loads(spec_file.read_bytes())
    children.die_with_parent(spec["parent"])
    with lines_file.open("ab", buffering=0) as lines:
        try:
            ask_until(spec, lines, logs)
        except CachelabError as error:
            lines.write(json.dumps({"refused": str(error)}).encode() + b"\n")
            return 1
    return 0


if __name__ == "__main__":
    status = main(*map(Path, sys.argv[1:4]))
    sys.stdout.flush()
    # Everything is on disk; a native thread left over must not keep the process.
    os._exit(status)
