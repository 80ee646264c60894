"""A recording on disk while it grows, so that what was seen outlives the process that saw it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.engine.capture import ObserverWarning

SPILLED = ("events", "flights", "snapshots")
_FOLDER, _LACKING = "recorded", "lacking.json"
_PATIENCE_S = 20.0
"""How long the end waits for a part file that is being written."""


class Source(Protocol):
    """What can be spilled: a `Recording`."""

    @property
    def overflow(self) -> str | None:
        """What was left out, in a sentence."""

    def sizes(self) -> dict[str, int]:
        """Return how many rows each table has so far."""

    def table(self, name: str, cell_id: str = "", start: int = 0) -> pa.Table:
        """Return a table from row `start` on, in order of recording."""


class Spill:
    """Writes what a recording gained to `directory/recorded`, twice a second, on its own thread.

    Part files `events-00001.parquet` and so on appear whole or not at all. Nothing that goes wrong
    here reaches the engine or whoever asks it: the first error becomes a warning and is kept in
    `error`, and the same rows are tried again next time.
    """

    def __init__(
        self, recording: Source, directory: Path, cell_id: str, every_s: float = 0.5
    ) -> None:
        """Wrap a recording; nothing is written before the block begins or `write` is called."""
        self.error: str | None = None
        """The first error of writing, in words."""
        self._recording, self._cell_id, self._every_s = recording, cell_id, every_s
        self._folder = directory / _FOLDER
        self._rows = dict.fromkeys(SPILLED, 0)
        self._parts = dict.fromkeys(SPILLED, 0)
        self._said: str | None = None
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cachelab-spill", daemon=True)

    def __enter__(self) -> Spill:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=_PATIENCE_S)
        self.write()

    def write(self) -> None:
        """Write what was recorded since the last time; also after the block, for what came last."""
        if not self._writing.acquire(timeout=_PATIENCE_S):
            self._failed(TimeoutError("the disk takes too long"))
            return
        try:
            for name in SPILLED:
                try:
                    self._write_part(name)
                except Exception as error:
                    self._failed(error)
            with contextlib.suppress(OSError):
                self._say_what_is_lacking()
        finally:
            self._writing.release()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.write()

    def _write_part(self, name: str) -> None:
        if self._recording.sizes()[name] <= self._rows[name]:
            return
        table = self._recording.table(name, self._cell_id, self._rows[name])
        file = self._folder / f"{name}-{self._parts[name] + 1:05d}.parquet"
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        try:
            pq.write_table(table, temporary, compression="lz4")
            os.replace(temporary, file)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        # Only now: rows that could not be written are tried again.
        self._parts[name] += 1
        self._rows[name] += table.num_rows

    def _say_what_is_lacking(self) -> None:
        """Leave a sentence on what the part files do not hold, as soon as there is one."""
        sentences = [self._recording.overflow, self.error]
        said = " ".join(sentence for sentence in sentences if sentence)
        if said and said != self._said:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{_LACKING}.tmp"
            temporary.write_text(json.dumps(said))
            os.replace(temporary, self._folder / _LACKING)
            self._said = said

    def _failed(self, error: Exception) -> None:
        if self.error is None:
            words = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
            self.error = f"What was recorded could not all be written ({words})."
            # Where warnings are errors, this one must not end the thread or the block either.
            with contextlib.suppress(ObserverWarning):
                warnings.warn(self.error, ObserverWarning, stacklevel=2)


def read_spilled(directory: Path) -> dict[str, pa.Table]:
    """Return what a cell spilled into `directory`, by table, each sorted by `seq`.

    Tables without rows are left out, and so are files that were not written to their end.
    """
    tables: dict[str, pa.Table] = {}
    for name in SPILLED:
        parts = [_read(file) for file in sorted((directory / _FOLDER).glob(f"{name}-*.parquet"))]
        whole = [part for part in parts if part is not None and part.num_rows]
        if whole:
            tables[name] = pa.concat_tables(whole).sort_by("seq")
    return tables


def read_lacking(directory: Path) -> str | None:
    """Return what is missing from what was spilled, in words; None if that is not known of any."""
    try:
        said: Any = json.loads((directory / _FOLDER / _LACKING).read_bytes())
    except (OSError, ValueError):
        return None
    return str(said)


def _read(file: Path) -> pa.Table | None:
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError):
        return None
