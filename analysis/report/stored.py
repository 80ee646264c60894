"""What a notebook measures on a live engine is stored, so that its page can be made again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from analysis.core.errors import RunError
from analysis.core.files import contents, write_atomically
from analysis.core.paths import place_of

T = TypeVar("T")


def measured(place: Path, kind: type[T], measure: partial[T]) -> T:
    """Return what an earlier call with these arguments stored; if there is none, measure it.

    The file is `place` with a digest of the arguments of `measure`, of which paths and functions do
    not count; so other settings are measured anew. `kind` is the type of the result: plain values
    and dataclasses, with tables and frames anywhere in them. Raises RunError if the file cannot be
    read as that type, and what `measure` raises; then nothing is stored.
    """
    given = [*measure.args, *sorted(measure.keywords.items())]
    identity = {"given": [one for one in given if not isinstance(one, Path) and not callable(one)]}
    file = place_of(place, identity)
    file = file.with_name(f"{file.name}.msgpack")
    if not file.is_file():
        stored = msgspec.msgpack.encode(measure(), enc_hook=_encode)
        write_atomically(file, stored)
    try:
        return msgspec.msgpack.decode(contents(file), type=kind, dec_hook=_decode)
    except (msgspec.MsgspecError, pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"{file} cannot be read ({error}). Restore it, or delete it to measure again."
        ) from error


def _encode(value: object) -> Any:
    if isinstance(value, pd.DataFrame):
        return _encode(pa.Table.from_pandas(value))
    if isinstance(value, pa.Table):
        sink = pa.BufferOutputStream()
        parquet.write_table(value, sink, compression="zstd")
        return sink.getvalue().to_pybytes()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} cannot be stored.")


def _decode(kind: type, value: Any) -> Any:
    if kind not in (pd.DataFrame, pa.Table):
        raise NotImplementedError(f"{kind.__name__} cannot be read.")
    table = parquet.read_table(pa.BufferReader(msgspec.convert(value, bytes)))
    return table.to_pandas() if kind is pd.DataFrame else table
