"""Wraps the cache's locks, to record which thread holds them."""

from __future__ import annotations

import threading
import time
from typing import Any

from analysis.shortfin.capture import report_fault


class Locks(threading.local):
    """The locks that the current thread holds, and those it took during the observed call."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.taken: list[str] = []
        self.observed = False
        """Whether an observed call is under way."""

    def begin(self, *, outermost: bool) -> int:
        """Begin an observed call on this thread; return its mark, for `names`."""
        if outermost:
            self.taken.clear()
            self.observed = True
        return len(self.taken)

    def end(self) -> None:
        """End the outermost observed call on this thread."""
        self.observed = False

    def took(self, name: str) -> None:
        """Record that this thread has taken a lock."""
        self.held.append(name)
        if self.observed:
            self.taken.append(name)

    def names(self, mark: int | None) -> tuple[str, ...]:
        """Return the locks that protected the last operation of this thread.

        They include locks taken in the innermost observed call and released before its event;
        `mark` is the start of that call, None without one.
        """
        taken = self.taken[mark:] if mark is not None else ()
        return tuple(sorted({*self.held, *taken}))


class WatchedLock:
    """A wrapper of a live lock that records its holder."""

    def __init__(self, lock: Any, name: str, locks: Locks | None) -> None:
        self.lock = lock
        self.name = name
        self.locks = locks
        """Where holders are recorded; None if the cache is not observed."""
        self.holder: tuple[int, str, float] | None = None
        """The thread that holds it: number, name, and start time on the monotonic clock."""
        self.acquired = 0
        """Number of acquisitions, including re-entrant ones."""
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock."""
        got: bool = self.lock.acquire(blocking, timeout)
        if got:
            self.acquired += 1
            self._depth += 1
            try:
                if self._depth == 1:
                    thread = threading.current_thread()
                    self.holder = threading.get_ident(), thread.name, time.monotonic()
                if (locks := self.locks) is not None:
                    locks.took(self.name)
            except Exception as error:  # the caller must know that it has the lock
                report_fault("Noting the holder of a lock", error)
        return got

    def release(self) -> None:
        """Release the lock."""
        self._depth -= 1
        if self._depth == 0:
            self.holder = None
        self.lock.release()
        locks = self.locks
        if locks is not None and self.name in locks.held:
            locks.held.remove(self.name)

    def locked(self) -> bool:
        """Return whether a thread holds it."""
        return bool(self.lock.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()
