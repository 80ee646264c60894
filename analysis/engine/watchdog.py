"""Kills a process that is frozen with the GIL held, so that no Python code can run.

A thread writes a beat into a pipe every second. If the beats stop, a helper process writes a
message, dumps the stacks of all threads with faulthandler's C signal handler, and kills the
process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from analysis.core.errors import EngineError, seconds
from analysis.shortfin import capture

BEAT_S = 1.0
LONGEST_SILENCE_S = 24 * 3600.0
DUMP_SIGNAL = signal.SIGUSR2
_GUARD = Path(__file__).with_name("_guard.py")


class Watchdog:
    """Watches this process from `start` to `stop`; `silence_s` seconds without a beat are a freeze.

    The message and the stacks are written to `dump`. A process has one watchdog; further objects
    share it.
    """

    _lock = threading.Lock()
    _holders = 0
    _helper: subprocess.Popen[bytes] | None = None
    _file: IO[bytes] | None = None
    _stop = threading.Event()
    _thread: threading.Thread | None = None

    def __init__(self, dump: Path, silence_s: float = 30.0) -> None:
        self.dump = dump
        self.silence_s = seconds(silence_s, "freeze_after_s", LONGEST_SILENCE_S)
        if self.silence_s < 2 * BEAT_S:
            raise EngineError(
                f"freeze_after_s must be at least {2 * BEAT_S:g}, not {silence_s:g}: the process"
                f" sends a beat every {BEAT_S:g} s."
            )
        self._held = False

    def start(self) -> None:
        """Start the helper process, unless it is already running."""
        cls = Watchdog
        with cls._lock:
            self._held = True
            cls._holders += 1
            if cls._holders > 1:
                return
            cls._file = open(self.dump, "ab", buffering=0)  # noqa: SIM115  # open until stop
            faulthandler.register(DUMP_SIGNAL, file=cls._file, all_threads=True)
            read, write = os.pipe()
            terminal = os.dup(capture.terminal_fd())
            cls._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(self.silence_s),
                 str(self.dump)],
                stdin=read, stdout=subprocess.DEVNULL, stderr=terminal, start_new_session=True,
            )  # fmt: skip
            os.close(read)
            os.close(terminal)
            cls._stop = threading.Event()
            cls._thread = threading.Thread(
                target=_beat, args=(write, cls._stop), name="cachelab-watchdog", daemon=True
            )
            cls._thread.start()

    def stop(self) -> None:
        """Stop the helper when the last watchdog stops, and remove an empty dump."""
        cls = Watchdog
        with cls._lock:
            if not self._held:
                return
            self._held = False
            cls._holders -= 1
            if cls._holders:
                return
            cls._stop.set()
            if cls._thread is not None:
                cls._thread.join(timeout=2 * BEAT_S)
            faulthandler.unregister(DUMP_SIGNAL)
            if cls._helper is not None:
                try:
                    cls._helper.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    cls._helper.kill()
                    cls._helper.wait()
            if cls._file is not None:
                name = Path(cls._file.name)
                cls._file.close()
                with contextlib.suppress(OSError):
                    if name.stat().st_size == 0:
                        name.unlink()


def _beat(write: int, stop: threading.Event) -> None:
    try:
        while not stop.wait(BEAT_S):
            os.write(write, b".")
    except OSError:
        pass  # the helper has ended
    finally:
        os.close(write)
