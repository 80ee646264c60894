"""Records a live engine: invocations, cache events, and snapshots of the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from analysis.core.background import repeated
from analysis.core.errors import EngineError
from analysis.engine.engine import Engine
from analysis.recording.checksums import MODES, Checksums
from analysis.recording.recorder import Recorder
from analysis.recording.recording import Recording
from analysis.recording.sizes import MOST_BYTES
from analysis.shortfin.capture import ObserverWarning

__all__ = ["ObserverWarning", "Recording", "checksummed", "observe"]


@contextmanager
def observe(
    engine: Engine,
    *,
    snapshots: bool = True,
    stacks: bool = False,
    memory_every_s: float = 0.1,
    max_events: int = 500_000,
    max_snapshots: int = 5_000,
    max_bytes: int = MOST_BYTES,
    likeliest: int = 0,
    verifies: bool = False,
    checksums: str | None = None,
) -> Iterator[Recording]:
    """Record a running engine as long as the block lasts, and yield the recording.

    Hooks are read-only and are removed on exit. `snapshots` takes one of the cache before and after
    every request and at failures; without it only the first and the last are taken. `stacks` adds
    the engine's own Python frames to every event. Resident memory is read every `memory_every_s`
    seconds (0: never). The first `max_events` events, as many invocations and `max_snapshots`
    snapshots are kept; `Recording.overflow` says what was dropped. An event takes some 300 bytes.
    Arrays and scores of invocations, frames and snapshots are counted apart: the recording is also
    full when they take more than `max_bytes`. `likeliest` keeps so many of the likeliest next
    tokens of each request's row (columns `top_tokens` and `top_logprobs`). `verifies` compares
    arguments with what they were filled with, and follows results up to the token that is chosen
    (columns `result_tokens`, `result_digests` and `changed`, events `chosen`). `checksums`
    (*sampled*, *landings* or *whole*) compares the bytes of pages; see `sanitize`.

    Raises EngineError if the engine is not running or is observed already.
    """
    recorder = Recorder(
        engine,
        snapshots=snapshots,
        stacks=stacks,
        max_events=max_events,
        max_snapshots=max_snapshots,
        max_bytes=max_bytes,
        likeliest=likeliest,
        verifies=verifies,
    )
    with engine.changes.block("observe") as undo:
        engine.watch(recorder)
        undo.callback(engine.unwatch)
        try:
            recorder.begins_with(recorder.snapshot("asked", None, 1.0))
            engine.listeners.append(recorder)
            with _memory(recorder, memory_every_s), checksummed(recorder, checksums):
                yield Recording(recorder)
            recorder.finish()
        finally:
            # Also when the block raises: what had not ended must not look as if it had.
            if recorder in engine.listeners:
                engine.listeners.remove(recorder)
            recorder.close()


@contextmanager
def _memory(recorder: Recorder, every_s: float) -> Iterator[None]:
    """Record the resident memory of the process from time to time."""
    if not every_s:
        yield
        return
    process, probe = psutil.Process(), recorder.engine.probe
    assert probe is not None
    table = probe.page_table_bytes

    def sample() -> None:
        try:
            recorder.event("memory", value=process.memory_info().rss, page_table_bytes=table)
        except Exception as error:
            recorder.fault(error)

    sample()
    with repeated(sample, "cachelab-memory", every_s, patience_s=5.0):
        yield


@contextmanager
def checksummed(recorder: Recorder, mode: str | None) -> Iterator[None]:
    """Look at the bytes of pages as long as the block lasts, unless that is done already.

    Where they cannot be read, an event says so. Raises EngineError for an unknown mode.
    """
    if mode is not None and mode not in MODES:
        raise EngineError(f"checksums is {', '.join(MODES)} or None, not {mode!r}.")
    probe = recorder.engine.probe
    if mode is None or probe is None or recorder.checksums is not None:
        yield
        return
    try:
        mine = Checksums(probe, recorder, mode=mode)
    except EngineError as error:
        recorder.event("checksums", message=str(error))
        yield
        return
    try:
        mine.open()
        if recorder.checksums is mine:
            recorder.event("checksums", coverage=mine.coverage)
        yield
    finally:
        if recorder.checksums is mine:
            recorder.read_all_bytes()
        recorder.checksums = None
        mine.close()
