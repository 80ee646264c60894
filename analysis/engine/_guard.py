"""The helper process of the watchdog. Imports only the standard library, to start fast."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

_LOOKS = 10
"""Number of successive checks without a beat after which a running process is frozen."""


def _state(pid: int) -> str:
    """Return the process state letter from /proc; "" if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def guard(pid: int, silence_s: float, dump: Path) -> None:
    """Wait for beats of `pid` on stdin; when they stop, dump its stacks and kill it."""
    silent = 0
    while True:
        ready, _, _ = select.select([0], [], [], silence_s / _LOOKS)
        if ready:
            if not os.read(0, 4096):
                return  # end of file: the watchdog stopped or the process ended
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
            f"Process {pid} was killed: it was frozen for {silence_s:g} s with the GIL held. The"
            f" stacks of all threads are in {dump}.\n"
        )
        # Kill the process even if the disk is full.
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
