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

        The snapshot is consistent if no operation of the cache ran meanwhile, and says so;
        operations that take longer than `timeout_s` are not waited for. While the engine is
        observed, operations are known, and the snapshot also goes into the recording; otherwise two
        readings in a row must agree. Raises EngineError if the engine is not running, or its pages
        cannot be read on this device.
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
    """Return the state between two operations, its place among the events, and if it is consistent.

    A sequence lock: the engine never waits for readers. A reading is consistent if no operation was
    under way before and none had begun after; otherwise the cache is read again.
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
    """Return a state that was read twice in a row: without an observer operations are unknown."""
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
