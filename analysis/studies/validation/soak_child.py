"""One engine of a soak test, a child module (see `analysis.core.jobs`): an answer an iteration."""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from analysis.core.jobs import Emit, serve
from analysis.workloads.workload import Request, Workload

_QUIESCENCE_S = 1.0
"""Time that pages may need to come back after the last answer."""
_KEPT = ("request_id", "outcome", "text", "tokens", "latency_s", "ttft_s", "retries")


def run(job: dict[str, Any], emit: Emit) -> None:
    """Run the workloads of a job in turn on one engine, until its time is up."""
    from analysis.engine import Engine, EngineConfig
    from analysis.treatments import treat

    workloads = [
        Workload("soak", tuple(Request(**row) for row in rows)) for rows in job["workloads"]
    ]
    with (
        Engine(EngineConfig.from_json(job["config"]), log_dir=Path(job["logs"])) as engine,
        treat(engine, *job["treatments"]),
    ):
        started = time.monotonic()
        emit({"begun": True})
        for number, workload in enumerate(cycle(workloads)):
            begun = time.monotonic() - started
            if begun >= job["seconds"]:
                return
            answers: list[dict[str, Any]] = []
            engine.run(
                workload,
                concurrency=job["level"],
                timeout_s=job["request_timeout_s"],
                on_result=answers.append,
                resubmit_s=job["resubmit_s"],
            )
            line = {
                "iteration": number,
                "begun_s": begun,
                "ended_s": time.monotonic() - started,
                "workload": number % len(workloads),
                "answers": [{name: row[name] for name in _KEPT} for row in answers],
            }
            emit({**line, **_at_quiescence(engine)})
            if engine.died is not None:
                emit({"ending": f"The engine died: {engine.died.message}"})
                return
            if all(row["outcome"] not in ("ok", "wrong") for row in answers):
                emit({"ending": "No request was answered any more."})
                return


def _at_quiescence(engine: Any) -> dict[str, Any]:
    """Return memory and pages when no request is running."""
    deadline = time.monotonic() + _QUIESCENCE_S
    while True:
        counts = engine.cache.snapshot().counts
        if not counts["live"] or time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    pages = {name: int(counts[name]) for name in ("free", "cached", "live", "leaked")}
    return {"rss_bytes": psutil.Process().memory_info().rss, **pages}


if __name__ == "__main__":
    serve(run)
