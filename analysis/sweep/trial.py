"""Runs one trial: a fresh engine and its workload. Each answer is written to disk at once.

A sweep runs `main(DIRECTORY)` in a process that a fork server made (see `core/fork_server.py`). It
writes its requests, facts and stacks to the directory of its job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.core import jobs
from analysis.core.errors import CachelabError, lack_behind
from analysis.sweep.grid import ENGINE, HTTP
from analysis.sweep.process import (
    FACTS,
    NOT_RUN,
    RECORDS,
    STACKS,
    STACKS_SIGNAL,
    peak_rss_bytes,
)
from analysis.workloads.workload import Request, Workload

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.recording.recorder import Recorder
    from analysis.treatments import Fault

Spec = Mapping[str, Any]
_IMPORTED = (
    "analysis.engine.clients", "analysis.engine.http_engine", "analysis.recording.stream",
    "analysis.sanitizer", "analysis.treatments.faults", "pandas",  # pyarrow's first array needs it
)  # fmt: skip
_LIKELIEST = 8
"""Number of most likely next tokens that are recorded for each row of an invocation."""
_PROBE = "1 2 3 "
_SHORTEST_PROBE_S, _LONGEST_PROBE_S, _PROBE_PAUSE_S = 5.0, 20.0, 0.25


def specification(
    config: Mapping[str, Any],
    workload: Workload,
    concurrency: int,
    request_timeout_s: float,
    *,
    observe: str = "nothing",
    sanitize: bool = False,
    treatments: Sequence[str] = (),
    resubmit_s: float | None = None,
    trial_id: str = "",
    target: str = ENGINE,
) -> dict[str, Any]:
    """Return everything a trial needs, as JSON values; `trial_id` is for the recording."""
    return {
        "trial_id": trial_id,
        "target": target,
        "observe": observe,
        "sanitize": sanitize,
        "treatments": list(treatments),
        "resubmit_s": resubmit_s,
        "config": dict(config),
        "workload": workload.name,
        "requests": [vars(request) for request in workload.requests],
        "concurrency": concurrency,
        "request_timeout_s": request_timeout_s,
    }


def ask(spec: Spec, directory: Path) -> dict[str, Any]:
    """Start a target, send it the workload, close it; return the trial's facts (also on disk).

    Treatments end last, so that the trial shows nothing of the engine without them. Before that, a
    recorded engine may finish requests that its clients gave up, the recording ends, and one more
    request checks whether the engine still answers.

    Raises EngineError if the engine cannot start with these settings, OSError if the disk is full.
    """
    from analysis.engine.clients import send_workload
    from analysis.sanitizer import settle
    from analysis.treatments.faults import Injection

    requests = tuple(Request(**row) for row in spec["requests"])
    workload = Workload(spec["workload"], requests)
    facts: dict[str, Any] = {}
    outcomes: list[str] = []
    started = time.monotonic()
    with open(directory / RECORDS, "ab", buffering=0) as records:

        def keep(row: Mapping[str, Any]) -> None:
            jobs.write_line(records, dict(row))
            outcomes.append(row["outcome"])

        engine = _target(spec, directory)
        facts["device"] = engine.device
        facts["page_tokens"] = engine.model.config.block_seq_stride
        _write(directory / FACTS, facts)  # a freeze at the start leaves at least this
        with (
            engine,
            _watched(engine, spec, directory) as recorder,
            _treated(engine, spec) as faults,
        ):
            send_workload(
                engine,
                workload,
                spec["concurrency"],
                timeout_s=spec["request_timeout_s"],
                on_result=keep,
                resubmit_s=spec["resubmit_s"],
            )
            _note(engine, faults, facts)
            _write(directory / FACTS, facts)  # the wait may last until the trial's deadline
            if recorder is not None:
                settle(engine, recorder)
                recorder.finish()
                _note(engine, faults, facts)
            for fault in faults:
                fault.injected = fault.injected or Injection()  # none for the request below
            # Not recorded, because this request is not in the workload.
            if engine.died is None and (silence := _silence(engine, spec, outcomes)):
                facts["silence"] = silence
    facts["log"] = engine.log
    facts["peak_rss_bytes"] = peak_rss_bytes()
    facts["duration_s"] = time.monotonic() - started
    _write(directory / FACTS, facts)
    return facts


def _target(spec: Spec, directory: Path) -> Any:
    """Return the engine of a trial, which has not started, or the server that stands for it."""
    from analysis.engine import Engine, EngineConfig
    from analysis.engine.http_engine import HttpEngine

    config, target = EngineConfig.from_json(spec["config"]), spec["target"]
    if target == ENGINE:
        return Engine(config, log_dir=directory)
    return HttpEngine(config, log_dir=directory, address=None if target == HTTP else target)


def _note(engine: Engine, faults: Sequence[Fault], facts: dict[str, Any]) -> None:
    """Add the state of the engine and of the injected fault to the facts."""
    if engine.died is not None:
        facts["death"] = engine.died.message
    if faults:
        rule, cause = faults[0].alarm(engine.release)
        injected = faults[0].injected
        facts["injected"] = injected and {**asdict(injected), "rule": rule, "cause": cause}
    facts["log"] = engine.log
    facts["peak_rss_bytes"] = peak_rss_bytes()


def _silence(engine: Engine, spec: Spec, outcomes: Sequence[str]) -> str | None:
    """Return a sentence if the engine no longer answers; None if it does, or if not checked.

    If a request timed out, or the last one to end had no answer, one more request for one token is
    sent. It is sent again while the engine rejects it, because the engine may still be busy with
    requests that were given up.
    """
    if outcomes and outcomes[-1] in {"ok", "wrong"} and "timeout" not in outcomes:
        return None
    wait_s = min(max(spec["request_timeout_s"], _SHORTEST_PROBE_S), _LONGEST_PROBE_S)
    deadline = time.monotonic() + wait_s
    while True:
        left_s = max(deadline - time.monotonic(), _PROBE_PAUSE_S)
        outcome = engine.generate(_PROBE, 1, timeout_s=left_s).outcome
        if outcome == "ok":
            return None
        if outcome != "rejected" or time.monotonic() + _PROBE_PAUSE_S > deadline:
            break
        time.sleep(_PROBE_PAUSE_S)
    counts = ", ".join(f"{number} {name}" for name, number in Counter(outcomes).items())
    ended = {"timeout": f"had no answer within {wait_s:g} s", "rejected": "was rejected"}
    return (
        f"The engine stopped answering: after the workload ({counts}), a single further request"
        f" {ended.get(outcome, f'ended as {outcome}')}."
    )


@contextmanager
def _watched(engine: Engine, spec: Spec, directory: Path) -> Iterator[Recorder | None]:
    """Record as specified, directly to disk; yield the recorder, or None."""
    if spec["observe"] == "nothing":
        yield None
        return
    from analysis.recording import observe
    from analysis.recording.stream import StreamWriter

    with observe(
        engine,
        snapshots=spec["observe"] == "snapshots",
        stacks=spec["sanitize"],
        likeliest=_LIKELIEST,
        verifies=spec["sanitize"],
        checksums="landings" if spec["sanitize"] else None,
    ) as recording:
        stream = StreamWriter(recording, directory, spec["trial_id"])
        with stream.writing():
            yield recording.recorder
    stream.write()  # includes the last snapshot, taken at the end of the observation
    if isinstance(stream.failure, OSError | MemoryError):
        raise stream.failure


@contextmanager
def _treated(engine: Engine, spec: Spec) -> Iterator[list[Fault]]:
    """Apply the treatments of the specification, and yield the faults among them."""
    from analysis.treatments import Fault, treat

    if not spec["treatments"]:
        yield []
        return
    with treat(engine, *spec["treatments"]) as treated:
        yield [treatment for treatment in treated.treatments if isinstance(treatment, Fault)]


def _write(file: Path, facts: Mapping[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts, default=jobs.plain))
    temporary.replace(file)


def main(directory: Path) -> int:
    """Run the trial of a directory, and return the exit status.

    If the machine lacks resources it is NOT_RUN plus the errno, because an exit status reaches the
    parent even if the disk is full.
    """
    try:
        return _run(directory)
    except (CachelabError, OSError, MemoryError, ImportError, RuntimeError) as error:
        number = _number_of(error)
        if number is None:
            raise
        with contextlib.suppress(OSError):
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
            sys.stdout.flush()
        return NOT_RUN + number


def _number_of(error: BaseException) -> int | None:
    """Return the errno of a machine error (0 if it has none); None for other errors."""
    if isinstance(error, ImportError):
        return 0
    if (lack := lack_behind(error)) is not None:
        return lack.errno
    # Only errors raised by the system have an errno.
    return error.errno if isinstance(error, OSError) else None


def preload() -> None:
    """Import what a trial needs, before it is forked: one by one that takes longer than a start."""
    from analysis.shortfin.service import installed_service

    installed_service()
    for name in _IMPORTED:
        importlib.import_module(name)


def _run(directory: Path) -> int:
    spec = jobs.read_job(directory)
    # Both stay open to the end: C code writes to them when no Python code can run.
    stacks = open(directory / STACKS, "wb")  # noqa: SIM115
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
    faulthandler.enable()
    try:
        ask(spec, directory)
    except CachelabError as error:
        if lack_behind(error) is not None:
            raise
        _write(directory / FACTS, {"refused": str(error)})
        return 1
    return 0
