"""The lock of a run: one process at a time may write to it."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.core.errors import RunError
from analysis.core.files import unreadable

LOCK = ".sweep.lock"
_LOOKS, _LOOK_S = 5, 0.05


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Hold the lock of a run; the system releases it when this process ends.

    Raises RunError if another process holds it, or if the run cannot be written.
    """
    try:
        handle = open(path / LOCK, "w")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"{path} cannot be written to: {error.strerror}.") from error
    with handle:
        for left in reversed(range(_LOOKS)):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise RunError(
                        f"Another sweep is writing to {path}. Wait for its end, or choose another"
                        " directory."
                    ) from None
                time.sleep(_LOOK_S)  # another process may be in `is_written`
        yield


def is_written(path: Path) -> bool:
    """Return whether a process holds the lock on a run."""
    try:
        handle = open(path / LOCK, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unreadable(path / LOCK, error) from error
    with handle:
        try:
            # Shared and released at once, so that several processes can check.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
