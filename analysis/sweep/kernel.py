"""Trials in this process, for notebooks; a crash or freeze is reported at the next run."""

from __future__ import annotations

import faulthandler
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.core import children, jobs
from analysis.core.errors import CachelabError, MachineError, lacking
from analysis.sweep.process import (
    RECORDS,
    engine_log,
    freeze_sentence,
    own_status,
    read_facts,
)
from analysis.sweep.rows import Ended
from analysis.sweep.trial import ask

_CRASH = "crash.txt"


def run_trial(spec: Mapping[str, Any], directory: Path) -> Ended:
    """Run one trial in this process, or return its end if an earlier process died in it.

    The directory of a running trial stays if the watchdog or a fatal signal ends the process. In
    the next run, that trial is recorded as hung or crashed, with its finished requests, and is not
    repeated. If the process was only stopped, there is no dump or crash report, and the trial is
    run again.

    Raises MachineError if the machine lacks resources.
    """
    if (ended := _ended_before(directory)) is not None:
        return ended
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(parents=True)
        with _crash_report(directory / _CRASH):
            facts = ask(spec, directory)
    except (CachelabError, OSError, MemoryError) as error:
        if lacked := lacking(error):
            raise MachineError(lacked) from error
        raise
    status, detail = own_status(facts)
    records = jobs.read_lines(directory / RECORDS)
    return Ended(records, facts["duration_s"], status, detail, None, facts)


def _ended_before(directory: Path) -> Ended | None:
    """Return the end of a trial from its left directory; None if it must be run again."""
    crash = children.tail(directory / _CRASH, 1_000_000).strip()
    frozen = freeze_sentence(directory)
    if not crash and frozen is None:
        return None
    facts = read_facts(directory)
    facts["log"] = engine_log(directory, facts)
    records = jobs.read_lines(directory / RECORDS)
    duration_s = max((r["submitted_s"] + r["latency_s"] for r in records), default=0.0)
    if frozen is not None:
        return Ended(records, duration_s, "hung", frozen, None, facts)
    detail = f"The process that ran this trial crashed: {crash.splitlines()[0]}."
    return Ended(records, duration_s, "crashed", detail, None, facts)


@contextmanager
def _crash_report(file: Path) -> Iterator[None]:
    """Write this process's stacks to `file` on a fatal signal, during the block."""
    was_enabled = faulthandler.is_enabled()
    with file.open("wb") as report:
        faulthandler.enable(file=report)
        try:
            yield
        finally:
            faulthandler.disable()
            if was_enabled:
                # The previous file is unknown; usually it is stderr.
                faulthandler.enable(file=sys.__stderr__ or 2)
