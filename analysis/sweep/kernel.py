"""Trials in this process, for notebooks; a freeze that ended it is reported at the next run."""

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
    """Run one trial here, or return how it ended if it ended the process that ran it before.

    The directory of a trial that is in progress stays when its process is ended by the engine's
    watchdog or by a signal of its own; run again, that trial is recorded as hung or crashed, with
    the requests that it had finished, and is not tried again. A process that was only stopped
    leaves neither a dump nor a crash report, and its trial is run anew.

    Raises MachineError if it could not be run for what this machine lacks.
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
    """Return how the trial of a directory left behind ended, None if it must be run anew."""
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
    """Make a fatal signal of this process leave its stacks in `file` while the trial runs."""
    was_enabled = faulthandler.is_enabled()
    with file.open("wb") as report:
        faulthandler.enable(file=report)
        try:
            yield
        finally:
            faulthandler.disable()
            if was_enabled:
                # The former file is not known; usually it is the process's own stderr.
                faulthandler.enable(file=sys.__stderr__ or 2)
