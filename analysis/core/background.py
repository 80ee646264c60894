"""A function that a thread of its own calls again and again while a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(
    step: Callable[[], float | None], name: str, every_s: float, *, patience_s: float
) -> Iterator[None]:
    """Call `step` on a daemon thread, first after `every_s` seconds, until the block ends.

    `step` must not raise; it may return the seconds until the next call, instead of `every_s`. The
    end of the block waits at most `patience_s` for a call that is under way.
    """
    stop = threading.Event()

    def run() -> None:
        wait_s: float | None = every_s
        while not stop.wait(every_s if wait_s is None else wait_s):
            wait_s = step()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=patience_s)
