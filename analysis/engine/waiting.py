"""Waiting with a deadline."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for at most `timeout_s` until a condition holds or raises."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(Exception):
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)


def within(action: Callable[[], None], timeout_s: float) -> None:
    """Run `action` on a daemon thread for at most `timeout_s`, and ignore its errors."""

    def run() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=max(0.0, timeout_s))
