"""Threads that take turns where they are told to: at a line, or at an instruction, of given files.

One of them runs at a time. It goes on until it has come to as many places as planned, until it
wants a lock that the other has, or until it ends: so every run is the same as the last.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_PATIENCE_S = 30.0
_Semaphore, _Thread = threading.Semaphore, threading.Thread


class Stuck(RuntimeError):  # noqa: N818  # it says what the threads are
    """Every thread waits for a lock that another one has."""


class Turns:
    """Runs functions on a thread each, changing turns by a plan.

    `files` are those whose lines count as places, or with `instructions` whose instructions. `plan`
    has the number of places after which the turn passes on, for each time that it is to.
    """

    def __init__(
        self, files: Iterable[str], plan: Sequence[int] = (), *, instructions: bool = False
    ) -> None:
        self._files, self._instructions = frozenset(files), instructions
        self._plan = list(plan)
        self._left = self._plan.pop(0) if self._plan else -1
        self.places = 0
        """Places that all threads together have come to."""
        self.at: list[str] = []
        """Where each planned change of turns came, as file:line."""
        self._gates: list[threading.Semaphore] = []
        self._done: list[bool] = []
        self._end = _Semaphore(0)
        self._here = threading.local()
        self._blocked: set[int] = set()

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[BaseException | None]:
        """Run them, the first one first; return the error of each. Stuck if none can go on."""
        errors: list[BaseException | None] = [None] * len(functions)
        self._gates = [_Semaphore(0) for _ in functions]
        self._done = [False] * len(functions)

        def work(number: int) -> None:
            self._here.number = number
            self._wait(number)
            sys.settrace(self._trace)
            try:
                functions[number]()
            except BaseException as error:
                errors[number] = error
            finally:
                sys.settrace(None)
                self._done[number] = True
                self._pass_on(number, ended=True)

        threads = [_Thread(target=work, args=(n,), daemon=True) for n in range(len(functions))]
        for thread in threads:
            thread.start()
        self._gates[0].release()
        if not self._end.acquire(timeout=_PATIENCE_S):
            raise Stuck("The threads do not end: each waits for another.")
        for thread in threads:
            thread.join(timeout=_PATIENCE_S)
        for error in errors:
            if isinstance(error, Stuck):
                raise error
        return errors

    def _wait(self, number: int) -> None:
        if not self._gates[number].acquire(timeout=_PATIENCE_S):
            raise Stuck("A thread was never given its turn.")

    def _pass_on(self, number: int, *, ended: bool = False) -> None:
        """Give the turn to the next thread that has not ended, if there is one."""
        count = len(self._gates)
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
        return self._local

    def _local(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == ("opcode" if self._instructions else "line"):
            self.places += 1
            if self._left > 0:
                self._left -= 1
                if self._left == 0:
                    name = frame.f_code.co_filename.rpartition("/")[2]
                    self.at.append(f"{name}:{frame.f_lineno}")
                    self._left = self._plan.pop(0) if self._plan else -1
                    self._pass_on(self._here.number)
        return self._local

    # -- locks -----------------------------------------------------------------------------

    def blocked(self) -> None:
        """Give the turn away since this thread cannot go on; Stuck if nobody else can either."""
        number = getattr(self._here, "number", None)
        if number is None:
            raise Stuck("A lock is held after its threads have ended.")
        self._blocked.add(number)
        if all(done or n in self._blocked for n, done in enumerate(self._done)):
            raise Stuck("Every thread waits for a lock that another one has.")
        self._pass_on(number)

    def released(self) -> None:
        """Take note that whoever is blocked may try again."""
        self._blocked.clear()

    @property
    def thread(self) -> int:
        """The number of the thread that asks; -1 for one that takes no turns."""
        return getattr(self._here, "number", -1)


class TurnLock:
    """A lock for threads that take turns: one that must wait passes the turn on."""

    def __init__(self, turns: Callable[[], Turns | None], *, reentrant: bool = False) -> None:
        self._turns, self._reentrant = turns, reentrant
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; False if it is taken and `blocking` is not wanted."""
        turns = self._turns()
        me = -1 if turns is None else turns.thread
        while self._depth and not (self._reentrant and self._owner == me):
            if not blocking:
                return False
            if turns is None:
                raise Stuck("A lock is taken twice by one thread.")
            turns.blocked()
        self._owner, self._depth = me, self._depth + 1
        return True

    def release(self) -> None:
        """Give it back."""
        self._depth -= 1
        turns = self._turns()
        if turns is not None and not self._depth:
            turns.released()

    def locked(self) -> bool:
        """Tell whether anybody has it."""
        return self._depth > 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@contextmanager
def turn_locks(turns: Callable[[], Turns | None]) -> Iterator[None]:
    """Have every lock that is made in the block be one for threads that take turns."""
    makers: Any = threading
    lock, rlock = makers.Lock, makers.RLock
    makers.Lock = lambda: TurnLock(turns)
    makers.RLock = lambda: TurnLock(turns, reentrant=True)
    try:
        yield
    finally:
        makers.Lock, makers.RLock = lock, rlock


def plans(places: int, preemptions: int) -> Iterator[tuple[int, ...]]:
    """Return every plan of at most so many changes of turns within so many places."""
    yield ()
    if preemptions:
        for first in range(1, places + 1):
            for rest in plans(places - first, preemptions - 1):
                yield (first, *rest)
