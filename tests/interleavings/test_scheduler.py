"""Scheduled threads: a planted race is found, and waiting for a lock blocks no other thread."""

from __future__ import annotations

import pytest

from analysis.interleavings.scheduler import (
    Deadlock,
    ScheduledLock,
    ThreadScheduler,
    preemption_plans,
)


class Counter:
    """Counts; two threads that do lose a count if they change between its reading and writing."""

    def __init__(self, lock: ScheduledLock | None = None) -> None:
        self.count, self.lock = 0, lock

    def on_two_lines(self) -> None:
        seen = self.count
        self.count = seen + 1

    def on_one_line(self) -> None:
        self.count += 1

    def locked(self) -> None:
        assert self.lock is not None
        with self.lock:
            seen = self.count
            self.count = seen + 1


def results(method: str, *, instructions: bool = False, preemptions: int = 1) -> set[int]:
    scheduler: ThreadScheduler | None = None

    def once(points: tuple[int, ...]) -> tuple[int, int]:
        nonlocal scheduler
        counter = Counter(ScheduledLock(lambda: scheduler))
        scheduler = ThreadScheduler([__file__], points, instructions=instructions)
        assert scheduler.run([getattr(counter, method)] * 2) == [None, None]
        return counter.count, scheduler.yield_points

    _, yield_points = once(())
    assert yield_points >= 2
    return {once(points)[0] for points in preemption_plans(yield_points, preemptions)}


def test_a_planted_race_is_found() -> None:
    assert results("on_two_lines") == {1, 2}


def test_one_within_a_line_needs_instructions() -> None:
    assert results("on_one_line") == {2}
    assert results("on_one_line", instructions=True) == {1, 2}


@pytest.mark.parametrize("preemptions", [1, 2])
def test_a_lock_prevents_it(preemptions: int) -> None:
    assert results("locked", preemptions=preemptions) == {2}


def test_every_run_is_the_same() -> None:
    assert [results("on_two_lines") for _ in range(3)] == [{1, 2}] * 3


def test_two_threads_that_wait_for_each_other_are_reported() -> None:
    now: list[ThreadScheduler] = []
    one, other = ScheduledLock(lambda: now[-1]), ScheduledLock(lambda: now[-1])

    def first() -> None:
        one.acquire()
        with other:
            one.release()

    def second() -> None:
        other.acquire()
        with one:
            other.release()

    deadlocks = 0
    for points in preemption_plans(8, 1):
        now.append(ThreadScheduler([__file__], points))
        try:
            now[-1].run([first, second])
        except Deadlock:
            deadlocks += 1
    assert deadlocks


def test_plans_are_all_there_are() -> None:
    assert list(preemption_plans(2, 1)) == [(), (1,), (2,)]
    assert len(list(preemption_plans(10, 2))) == 1 + 10 + sum(10 - n for n in range(1, 11))
