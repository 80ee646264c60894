"""Waiting with a deadline."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until a condition holds or raises, for at most `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(Exception):
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)


def within(action: Callable[[], None], timeout_s: float) -> None:
    """Run `action` on a daemon thread, wait at most `timeout_s` seconds, and ignore its errors."""

    def run() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=max(0.0, timeout_s))
