"""One trial in a child process: started, observed, ended at its deadline, and read back."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.core import children, jobs
from analysis.core.errors import EngineError, MachineError
from analysis.sweep.rows import Ended

STACKS_SIGNAL = signal.SIGUSR1
_STACKS_WAIT_S = 3.0

RECORDS, OUTPUT = jobs.ANSWERS, jobs.OUTPUT
FACTS, STACKS = "facts.json", "stacks.txt"
"""What a trial's process leaves in its directory, beside its job."""
FROZEN, PRINTED = "watchdog-*.txt", "engine-*.log"
"""What an engine leaves in its log directory: the dump of a freeze, and what it printed."""
NOT_RUN = 100
"""Exit status of a trial that could not be run for what the machine lacked, plus its errno."""


class TrialProcess:
    """A running trial: `poll` it until it has ended, then read `ended`; `kill` ends it."""

    def __init__(self, python: Path, spec: dict[str, Any], directory: Path, timeout_s: float):
        shutil.rmtree(directory, ignore_errors=True)
        self.directory, self.timeout_s = directory, timeout_s
        self._child = jobs.Child(python, "analysis.sweep.trial", spec, directory)
        self._process = self._child.process
        self._started = time.monotonic()
        self._elapsed_s: float | None = None
        self._ended_ns: int | None = None
        self._expired = False
        self._peak_rss = 0

    @property
    def pid(self) -> int:
        """Process id, which is also that of its process group."""
        return self._process.pid

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start of the process to its end, or to now."""
        if self._elapsed_s is not None:
            return self._elapsed_s
        return time.monotonic() - self._started

    def poll(self) -> bool:
        """Return whether the trial has ended; end it when its deadline has passed."""
        self._peak_rss = max(self._peak_rss, peak_rss_bytes(self.pid) or 0)
        if self._process.poll() is None:
            if self.elapsed_s < self.timeout_s:
                return False
            self._expired = True
            self._ask_for_stacks()
            self.kill()
        if self._elapsed_s is None:
            self._elapsed_s = time.monotonic() - self._started
            self._ended_ns = time.monotonic_ns()
            self.kill()  # what the process started itself must not stay behind
        return True

    def kill(self) -> None:
        """End the trial's process and everything that it started."""
        self._child.kill()

    def ended(self) -> Ended:
        """Return how the trial ended.

        Raises EngineError if no engine can start with its settings, MachineError if the machine
        lacked something, or if the process ended before it started an engine.
        """
        facts = read_facts(self.directory)
        if refused := facts.get("refused"):
            raise EngineError(refused)
        if not_run := self._not_run():
            raise MachineError(not_run)
        status, detail, exit_signal = self._status(facts)
        facts.setdefault("peak_rss_bytes", self._peak_rss or None)
        printed = children.tail(self.directory / OUTPUT)
        facts["log"] = engine_log(self.directory, facts) + printed
        duration_s = facts.get("duration_s") or self.elapsed_s
        records = jobs.read_lines(self.directory / RECORDS)
        return Ended(records, duration_s, status, detail, exit_signal, facts, self._ended_ns)

    def _not_run(self) -> str | None:
        """Return why no engine was started; None if one was."""
        code = self._process.returncode or 0
        if code - NOT_RUN in errno.errorcode:
            return os.strerror(code - NOT_RUN)
        if code != NOT_RUN and (self.directory / STACKS).is_file():
            return None
        if self._expired:
            return f"its process had not started the engine after {self.timeout_s:g} s"
        if code < 0:
            return f"its process was ended by {_signal_name(-code)} before it started the engine"
        return f"its process could not start the engine: {self._child.last_line()}"

    def _status(self, facts: dict[str, Any]) -> tuple[str, str | None, int | None]:
        code = self._process.returncode
        exit_signal = -code if code is not None and code < 0 else None
        if self._expired:
            detail = f"The trial passed its deadline of {self.timeout_s:g} s and was ended"
            if children.tail(self.directory / STACKS, 1):
                stacks = f"logs/{self.directory.name}/{STACKS}"
                return "hung", f"{detail}; every thread's stack is in {stacks}.", exit_signal
            return "hung", f"{detail}; it left no stacks.", exit_signal
        if frozen := freeze_sentence(self.directory):
            return "hung", frozen, exit_signal
        if exit_signal is not None:
            name = _signal_name(exit_signal)
            return "crashed", f"The trial's process was ended by {name}.", exit_signal
        if code != 0 or "duration_s" not in facts:
            last = self._child.last_line()
            return "crashed", f"The trial's process ended with status {code}: {last}", None
        return *own_status(facts), None

    def _ask_for_stacks(self) -> None:
        """Make faulthandler's C code write every thread's stack, which also works in a freeze."""
        stacks = self.directory / STACKS
        if not stacks.is_file():  # no handler yet: the signal would only end the process
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(STACKS_SIGNAL)
        deadline, size = time.monotonic() + _STACKS_WAIT_S, 0
        while time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.1)
            before, size = size, stacks.stat().st_size
            if size and size == before:
                break


def peak_rss_bytes(pid: int | str = "self") -> int | None:
    """Return a process's largest resident memory so far, None once it has ended.

    Not from getrusage, whose figure a child inherits from its parent.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def read_facts(directory: Path) -> dict[str, Any]:
    """Return the facts that a trial wrote, {} if it wrote none."""
    try:
        facts: dict[str, Any] = json.loads((directory / FACTS).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def own_status(facts: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the status of a trial whose process came to its end, and a sentence if not ok."""
    if death := facts.get("death"):
        return "engine_died", death
    if silence := facts.get("silence"):
        return "hung", silence
    return "ok", None


def freeze_sentence(directory: Path) -> str | None:
    """Return the watchdog's sentence if the trial's process froze with the GIL held."""
    for dump in sorted(directory.glob(FROZEN)):
        for line in children.tail(dump, 1_000_000).splitlines():
            if line.strip():
                return line.strip()
    return None


def engine_log(directory: Path, facts: Mapping[str, Any]) -> str:
    """Return what the engine printed, also where its process ended before it wrote its facts."""
    if log := facts.get("log"):
        return str(log)
    return "".join(children.tail(file) for file in sorted(directory.glob(PRINTED)))


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
