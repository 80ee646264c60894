"""Which of the cache's locks a thread holds: the live locks, in a wrapping that takes note."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from analysis.shortfin.capture import report_fault


class Locks(threading.local):
    """What the thread that asks holds, and what it took since its outermost watched call began."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.taken: list[str] = []
        self.asked = False
        """Whether a watched call is under way, so that it counts what is taken."""

    def begin(self, *, outermost: bool) -> int:
        """Begin a watched call on this thread; return its mark, for `names`."""
        if outermost:
            self.taken.clear()
            self.asked = True
        return len(self.taken)

    def end(self) -> None:
        """End the outermost watched call on this thread."""
        self.asked = False

    def took(self, name: str) -> None:
        """Take note that this thread has a lock."""
        self.held.append(name)
        if self.asked:
            self.taken.append(name)

    def names(self, mark: int | None) -> tuple[str, ...]:
        """Return the locks under which what this thread just did was done.

        What the innermost watched call took counts for it, though it was given back by the time
        that the call is told of; `mark` is where that began, None if none is under way.
        """
        taken = self.taken[mark:] if mark is not None else ()
        return tuple(sorted({*self.held, *taken}))


class WatchedLock:
    """A live lock that tells who holds it; it locks by the very lock that it stands for."""

    def __init__(self, lock: Any, name: str, locks: Locks | None) -> None:
        self.lock = lock
        self.name = name
        self.locks = locks
        """Who is told of it; None while nobody watches."""
        self.holder: tuple[int, str, float] | None = None
        """The thread that has it: its number, its name, and since when (monotonic clock)."""
        self.acquired = 0
        """How often it was acquired, also by a thread that held it."""
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
            except Exception as error:  # or the caller would not know that it has the lock
                report_fault("Noting who has a lock", error)
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
        """Tell whether anybody holds it."""
        return bool(self.lock.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
