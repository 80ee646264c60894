"""Snapshots of a live engine's KV cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from analysis.core.errors import EngineError
from analysis.shortfin.cache.probe import BaseProbe
from analysis.shortfin.service.common import Service
from analysis.snapshots.snapshot import CacheState, Snapshot

_PAUSE_S = 0.0001
_SETTLE_S = 0.001


class _Engine(Protocol):
    service: Service | None
    probe: BaseProbe | None

    def clock_s(self) -> float: ...


class Cache:
    """The cache of a live engine."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine

    def snapshot(self, *, contents: bool = False, timeout_s: float = 1.0) -> Snapshot:
        """Return the state of the cache now; with `contents`, also of each page in use.

        `Snapshot.consistent` is set if no operation of the cache ran during the read; operations
        longer than `timeout_s` are not waited for. If the engine is observed, its operations are
        known, and the snapshot is also recorded; otherwise two successive reads must be equal.
        Raises EngineError if the engine is not running, or if its pages cannot be read.
        """
        probe = self._engine.probe
        if probe is not None and probe.observer is not None:
            snapshot = probe.observer.snapshot("asked", None, timeout_s)
        else:
            service = self._engine.service
            if service is None:
                raise EngineError("The engine is not running, so it has no cache.")
            probe = service.probe()
            state, consistent = _read_twice(probe, time.monotonic() + timeout_s)
            snapshot = Snapshot(state, t_s=self._engine.clock_s(), consistent=consistent)
        if contents:
            in_use = sorted({*range(snapshot.page_count)} - {*snapshot.pages("free")})
            snapshot = dataclasses.replace(snapshot, contents=probe.contents(in_use))
        return snapshot


def read_between(
    probe: BaseProbe, mark: Callable[[], Any], place: Callable[[], int], timeout_s: float
) -> tuple[CacheState, int, bool]:
    """Return the state between two operations, its `seq`, and whether it is consistent.

    This is a sequence lock: the engine never waits for readers. A read is consistent if no
    operation was running before it and none began during it. Otherwise the cache is read again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        before = mark()
        state, seq = probe.read(), place()
        if before is not None and mark() == before:
            return state, seq, True
        if time.monotonic() >= deadline:
            return state, seq, False
        time.sleep(_PAUSE_S)


def _read_twice(probe: BaseProbe, deadline: float) -> tuple[CacheState, bool]:
    """Return a state that two successive reads agree on, for engines without an observer."""
    last = None
    while True:
        probe.find_requests()
        state = probe.read()
        if state == last:
            return state, True
        if time.monotonic() >= deadline:
            return state, False
        last = state
        time.sleep(_SETTLE_S)
