"""The helper process of the watchdog: only the standard library, so that it starts fast."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

_LOOKS = 10
"""Looks in a row at a process that runs without a beat, after which it is frozen."""


def _state(pid: int) -> str:
    """Return the process state letter from /proc, empty once the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def guard(pid: int, silence_s: float, dump: Path) -> None:
    """Wait for the beats of `pid` on stdin; dump and end it when they stop (runs in the helper)."""
    silent = 0
    while True:
        ready, _, _ = select.select([0], [], [], silence_s / _LOOKS)
        if ready:
            if not os.read(0, 4096):
                return  # closed: the watchdog stopped, or the process ended
            silent = 0
            continue
        state = _state(pid)
        if not state:
            return
        # A process stopped by a debugger or by job control is not frozen.
        silent = 0 if state in "Tt" else silent + 1
        if silent < _LOOKS:
            continue
        sentence = (
            f"The process {pid} froze for {silence_s:g} s (no Python code could run, so the GIL was"
            f" held) and was ended; every thread's stack is in {dump}.\n"
        )
        # A disk that is full must not keep the process frozen.
        with contextlib.suppress(OSError), open(dump, "ab") as file:
            file.write(sentence.encode())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
        time.sleep(1.0)
        with contextlib.suppress(OSError):
            os.write(2, sentence.encode())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return


if __name__ == "__main__":
    guard(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
