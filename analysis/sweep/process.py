"""Runs one trial in a child process, kills it at its deadline, and reads its results."""

from __future__ import annotations

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
from analysis.core.fork_server import ForkServers
from analysis.sweep.rows import Ended

STACKS_SIGNAL = signal.SIGUSR1
_STACKS_WAIT_S = 3.0

RECORDS, OUTPUT = jobs.ANSWERS, jobs.OUTPUT
FACTS, STACKS = "facts.json", "stacks.txt"
"""Files of a trial's process in its directory, in addition to its job."""
FROZEN, PRINTED = "watchdog-*.txt", "engine-*.log"
"""Files in an engine's log directory: stacks of a freeze, and the engine's output."""
NOT_RUN = 100
"""Exit status of a trial for which the machine lacked resources, plus the errno."""


def trial_servers() -> ForkServers:
    """Return what forks processes of trials, to be used as a context manager."""
    return ForkServers("analysis.sweep.trial")


class TrialProcess:
    """A running trial: call `poll` until it has ended, then `ended`."""

    def __init__(
        self,
        servers: ForkServers,
        python: Path,
        spec: dict[str, Any],
        directory: Path,
        timeout_s: float,
    ) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.directory, self.timeout_s = directory, timeout_s
        self._process = servers.fork(python, spec, directory)
        self._started = time.monotonic()
        self._elapsed_s: float | None = None
        self._ended_ns: int | None = None
        self._expired = False
        self._peak_rss = 0

    @property
    def pid(self) -> int | None:
        """Process id, which is also the id of its process group; None if it could not start."""
        return self._process.pid

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start of the process to its end or to now."""
        if self._elapsed_s is not None:
            return self._elapsed_s
        return time.monotonic() - self._started

    def poll(self) -> bool:
        """Return whether the trial has ended; kill it after its deadline."""
        if self.pid is not None:
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
        return True

    def kill(self) -> None:
        """Kill the trial's process and its children."""
        self._process.kill()

    def ended(self) -> Ended:
        """Return how the trial ended.

        Raises EngineError if the engine cannot start with its settings, MachineError if the machine
        lacked resources or the process ended before it started an engine.
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
        """Return why no engine was started; None if it was."""
        code = self._process.returncode or 0
        if self._process.errno is not None:
            return os.strerror(self._process.errno)
        if self._process.lost:
            return f"its process could not start the engine: {jobs.last_line(self.directory)}"
        if code - NOT_RUN in errno.errorcode:
            return os.strerror(code - NOT_RUN)
        if code != NOT_RUN and (self.directory / STACKS).is_file():
            return None
        if self._expired:
            return f"its process did not start the engine within {self.timeout_s:g} s"
        if code < 0:
            return f"its process was killed by {_signal_name(-code)} before it started the engine"
        return f"its process could not start the engine: {jobs.last_line(self.directory)}"

    def _status(self, facts: dict[str, Any]) -> tuple[str, str | None, int | None]:
        code = self._process.returncode
        exit_signal = -code if code is not None and code < 0 else None
        if self._expired:
            detail = f"The trial was killed at its deadline of {self.timeout_s:g} s"
            if children.tail(self.directory / STACKS, 1):
                stacks = f"logs/{self.directory.name}/{STACKS}"
                return "hung", f"{detail}; the stacks of all threads are in {stacks}.", exit_signal
            return "hung", f"{detail}; it wrote no stacks.", exit_signal
        if frozen := freeze_sentence(self.directory):
            return "hung", frozen, exit_signal
        if exit_signal is not None:
            name = _signal_name(exit_signal)
            return "crashed", f"The trial's process was killed by {name}.", exit_signal
        if code != 0 or "duration_s" not in facts:
            last = jobs.last_line(self.directory)
            return "crashed", f"The trial's process exited with status {code}: {last}", None
        return *own_status(facts), None

    def _ask_for_stacks(self) -> None:
        """Make faulthandler write the stacks of all threads, which also works in a freeze."""
        stacks = self.directory / STACKS
        if not stacks.is_file():  # no handler yet: the signal would kill the process
            return
        self._process.send_signal(STACKS_SIGNAL)
        deadline, size = time.monotonic() + _STACKS_WAIT_S, 0
        while time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.1)
            before, size = size, stacks.stat().st_size
            if size and size == before:
                break


def peak_rss_bytes(pid: int | str = "self") -> int | None:
    """Return a process's largest resident memory so far; None if it has ended.

    getrusage is not used, because a child inherits its value from its parent.
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
    """Return the facts that a trial wrote; {} if there are none."""
    try:
        facts: dict[str, Any] = json.loads((directory / FACTS).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def own_status(facts: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the status of a trial that ended normally, and a sentence if not ok."""
    if death := facts.get("death"):
        return "engine_died", death
    if silence := facts.get("silence"):
        return "hung", silence
    return "ok", None


def freeze_sentence(directory: Path) -> str | None:
    """Return the watchdog's message if the process froze with the GIL held."""
    for dump in sorted(directory.glob(FROZEN)):
        for line in children.tail(dump, 1_000_000).splitlines():
            if line.strip():
                return line.strip()
    return None


def engine_log(directory: Path, facts: Mapping[str, Any]) -> str:
    """Return the engine's output, also if the process ended before it wrote its facts."""
    if log := facts.get("log"):
        return str(log)
    return "".join(children.tail(file) for file in sorted(directory.glob(PRINTED)))


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
