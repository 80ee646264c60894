"""Captures file descriptor 2 and the engine's Python loggers in a file.

The native runtime and a dying worker print to the descriptor, not to `sys.stderr`. While an engine
runs, the descriptor is a file, the engine's log. So nothing is lost if the process is killed, and
nothing is printed into a notebook. Python output to `sys.stderr` is not captured.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from pathlib import Path

_lock = threading.Lock()
_live: list[StderrCapture] = []
_saved_fd: int | None = None
_saved_stream: object = None
_engine_logger = logging.getLogger("shortfin_apps")


class ObserverWarning(UserWarning):
    """Something could not be observed, or the recording is full."""


def report_fault(what: str, error: BaseException) -> None:
    """Report a failure of this package in the engine's log and as a warning. Must not raise."""
    with contextlib.suppress(Exception):
        trace = "".join(traceback.format_exception(error))
        os.write(2, f"{what} failed, and the engine continues: {trace}".encode(errors="replace"))
    with contextlib.suppress(Exception):  # also if warnings are errors
        text = f"{what} failed: {type(error).__name__}: {error}"
        warnings.warn(text, ObserverWarning, stacklevel=2)


class _ToDescriptor(logging.Handler):
    """Writes log records to descriptor 2."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            os.write(2, (self.format(record) + "\n").encode(errors="replace"))


_handler = _ToDescriptor()
_handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))


class StderrCapture:
    """Sends file descriptor 2 to the file `path` from `start` until `stop`.

    Several captures in one process share the first one's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._from = 0
        self._text: str | None = None

    def start(self) -> None:
        """Redirect the descriptor, unless another capture has done it."""
        global _saved_fd, _saved_stream
        with _lock:
            if _live:
                self.path = _live[0].path
            else:
                target = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.flush()
                _saved_fd = os.dup(2)
                _saved_stream = _keep_stream(_saved_fd)
                os.dup2(target, 2)
                os.close(target)
            self._from = self.path.stat().st_size
            _live.append(self)
            _engine_logger.addHandler(_handler)  # no effect if already added
            _engine_logger.propagate = False

    def stop(self) -> None:
        """Restore the descriptor after the last capture; the text can still be read."""
        global _saved_fd, _saved_stream
        with _lock:
            if self not in _live:
                return
            self._text = self.text()
            _live.remove(self)
            if not _live:
                _engine_logger.removeHandler(_handler)
                _engine_logger.propagate = True
            if not _live and _saved_fd is not None:
                os.dup2(_saved_fd, 2)
                os.close(_saved_fd)
                if isinstance(_saved_stream, tuple):
                    ours, theirs = _saved_stream
                    if sys.stderr is ours:
                        sys.stderr = theirs
                _saved_fd = _saved_stream = None

    def text(self) -> str:
        """Return the output since `start`."""
        if self._text is not None:
            return self._text
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")
        return ""


def terminal_fd() -> int:
    """Return a descriptor of the original stderr."""
    return 2 if _saved_fd is None else _saved_fd


def _keep_stream(fd: int) -> object:
    """Redirect `sys.stderr` from descriptor 2 to the saved one; return the undo function."""
    try:
        if sys.stderr.fileno() != 2:
            return None
    except (OSError, ValueError, AttributeError):  # a notebook's stream has no descriptor
        return None
    theirs = sys.stderr
    ours = io.TextIOWrapper(
        os.fdopen(fd, "wb", buffering=0, closefd=False), line_buffering=True, write_through=True
    )
    sys.stderr = ours
    return ours, theirs
