"""Runs threads one at a time, with preemption at chosen lines or instructions.

A thread runs until its next preemption point, until it needs a lock that another thread holds, or
until it ends. So runs are deterministic.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

_TIMEOUT_S = 30.0
_Semaphore, _Thread = threading.Semaphore, threading.Thread


class Deadlock(RuntimeError):  # noqa: N818  # a state, not an error class
    """Every thread waits for a lock that another one holds."""


class ThreadScheduler:
    """Runs functions, each on its own thread, one at a time.

    Each line (with `instructions`, each instruction) in `files` is a yield point.
    `preemption_points` has the number of yield points before each preemption.
    """

    def __init__(
        self,
        files: Iterable[str],
        preemption_points: Sequence[int] = (),
        *,
        instructions: bool = False,
    ) -> None:
        self._files, self._instructions = frozenset(files), instructions
        self._points = iter(preemption_points)
        self._left = next(self._points, -1)
        self.yield_points = 0
        """Number of yield points passed by all threads together."""
        self.preempted_at: list[str] = []
        """Place of each preemption, as file:line."""
        self._gates: list[threading.Semaphore] = []
        self._done: list[bool] = []
        self._end = _Semaphore(0)
        self._local = threading.local()
        self._blocked: set[int] = set()

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[BaseException | None]:
        """Run the functions, starting with the first; return their errors. Raises Deadlock."""
        errors: list[BaseException | None] = [None] * len(functions)
        self._gates = [_Semaphore(0) for _ in functions]
        self._done = [False] * len(functions)

        def work(number: int) -> None:
            self._local.number = number
            self._wait(number)
            sys.settrace(self._trace)
            try:
                functions[number]()
            except BaseException as error:
                errors[number] = error
            finally:
                sys.settrace(None)
                self._done[number] = True
                self._switch(number)

        threads = [_Thread(target=work, args=(n,), daemon=True) for n in range(len(functions))]
        for thread in threads:
            thread.start()
        self._gates[0].release()
        if not self._end.acquire(timeout=_TIMEOUT_S):
            raise Deadlock("The threads do not end, because each waits for another.")
        for thread in threads:
            thread.join(timeout=_TIMEOUT_S)
        for error in errors:
            if isinstance(error, Deadlock):
                raise error
        return errors

    def _wait(self, number: int) -> None:
        if not self._gates[number].acquire(timeout=_TIMEOUT_S):
            raise Deadlock("A thread was never scheduled.")

    def _switch(self, number: int) -> None:
        """Run the next thread that has not ended, if any."""
        count, ended = len(self._gates), self._done[number]
        for step in range(1, count):
            other = (number + step) % count
            if not self._done[other]:
                self._gates[other].release()
                if not ended:
                    self._wait(number)
                return
        if ended:
            self._end.release()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if self._instructions:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._trace_point

    def _trace_point(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == ("opcode" if self._instructions else "line"):
            self.yield_points += 1
            self._left -= 1
            if self._left == 0:
                name = frame.f_code.co_filename.rpartition("/")[2]
                self.preempted_at.append(f"{name}:{frame.f_lineno}")
                self._left = next(self._points, -1)
                self._switch(self._local.number)
        return self._trace_point

    # -- locks -----------------------------------------------------------------------------

    def blocked(self) -> None:
        """Run another thread, because this one waits for a lock. Raises Deadlock."""
        if self.thread < 0:
            raise Deadlock("A lock is held after its threads have ended.")
        self._blocked.add(self.thread)
        if all(done or n in self._blocked for n, done in enumerate(self._done)):
            raise Deadlock("Every thread waits for a lock that another one holds.")
        self._switch(self.thread)

    def released(self) -> None:
        """Let blocked threads try again."""
        self._blocked.clear()

    @property
    def thread(self) -> int:
        """Number of the calling thread; -1 if it is not scheduled."""
        return getattr(self._local, "number", -1)


class ScheduledLock:
    """A lock for scheduled threads: a waiting thread lets another one run."""

    def __init__(
        self, scheduler: Callable[[], ThreadScheduler | None], *, reentrant: bool = False
    ) -> None:
        self._scheduler, self._reentrant = scheduler, reentrant
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; return False if it is taken and `blocking` is False."""
        scheduler = self._scheduler()
        me = -1 if scheduler is None else scheduler.thread
        while self._depth and not (self._reentrant and self._owner == me):
            if not blocking:
                return False
            if scheduler is None:
                raise Deadlock("A lock is taken twice by one thread.")
            scheduler.blocked()
        self._owner, self._depth = me, self._depth + 1
        return True

    def release(self) -> None:
        """Release the lock."""
        self._depth -= 1
        scheduler = self._scheduler()
        if scheduler is not None and not self._depth:
            scheduler.released()

    def locked(self) -> bool:
        """Return whether the lock is taken."""
        return self._depth > 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def scheduled_locks(scheduler: Callable[[], ThreadScheduler | None]) -> Iterator[None]:
    """Make every lock that is created in the block a ScheduledLock."""
    with (
        patch.object(threading, "Lock", lambda: ScheduledLock(scheduler)),
        patch.object(threading, "RLock", lambda: ScheduledLock(scheduler, reentrant=True)),
    ):
        yield


def preemption_plans(yield_points: int, preemptions: int) -> Iterator[tuple[int, ...]]:
    """Yield every choice of at most `preemptions` of the yield points."""
    yield ()
    if preemptions:
        for first in range(1, yield_points + 1):
            for rest in preemption_plans(yield_points - first, preemptions - 1):
                yield (first, *rest)
