"""Defers Ctrl-C during operations that must be completed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block, which must be short."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets Ctrl-C
        return
    caught: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    try:
        yield
    finally:
        if before is not None:  # a handler not set by Python cannot be restored
            signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(*caught[0])
