"""Records a live engine: invocations, cache events, and snapshots of the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from analysis.core.background import repeated
from analysis.core.errors import EngineError
from analysis.core.spans import spanning
from analysis.engine.engine import Engine
from analysis.recording.checksums import MODES, Checksums
from analysis.recording.recorder import Recorder
from analysis.recording.recording import FinishedRecording, Recording
from analysis.recording.sizes import MOST_BYTES
from analysis.shortfin.capture import ObserverWarning

__all__ = ["FinishedRecording", "ObserverWarning", "Recording", "checksummed", "observe"]


@spanning
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
    """Record a running engine during the block, and yield the recording.

    Hooks are read-only and are removed on exit.

    - `snapshots`: take a snapshot of the cache before and after every request and at failures;
      otherwise only the first and the last are taken.
    - `stacks`: add the engine's Python frames to every event.
    - `memory_every_s`: interval for reading the resident memory, in seconds (0: never).
    - `max_events`, `max_snapshots`, `max_bytes`: limits for events (also invocations), snapshots,
      and the bytes of arrays, scores, frames and snapshots. Later ones are dropped, and counted in
      `Recording.overflow`. An event takes about 300 bytes.
    - `likeliest`: number of most likely next tokens to keep for each request's row (columns
      `top_tokens` and `top_logprobs`).
    - `verifies`: check that arguments do not change, and follow results up to the chosen token
      (columns `result_tokens`, `result_digests` and `changed`, events `chosen`).
    - `checksums` (*sampled*, *landings* or *whole*): compare the bytes of pages; see `sanitize`.

    Raises EngineError if the engine is not running or is already observed.
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
            # Also if the block raises: unfinished operations must be recorded as such.
            if recorder in engine.listeners:
                engine.listeners.remove(recorder)
            recorder.close()


@contextmanager
def _memory(recorder: Recorder, every_s: float) -> Iterator[None]:
    """Record the resident memory of the process periodically."""
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
    """Check the bytes of pages during the block, unless they are already being checked.

    If they cannot be read, an event is recorded. Raises EngineError for an unknown mode.
    """
    if mode is not None and mode not in MODES:
        raise EngineError(f"checksums must be {', '.join(MODES)} or None, not {mode!r}.")
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
