"""Checks the bytes of pages for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from analysis.core.errors import EngineError
from analysis.recording.checksums import MODES, Checksums
from analysis.recording.recorder import Recorder


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
