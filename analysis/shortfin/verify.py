"""Compares the filled and the read arguments of an invocation; digests of its results."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.model.elements import decode
from analysis.shortfin.scores import Scores

FILLED: ContextVar[dict[int, Filled] | None] = ContextVar("FILLED", default=None)
"""How the current invocation filled each device array, by id; None if not recorded."""
Chosen = tuple[list[int], list[int]]
"""For each row of an invocation, the token of a greedy selection and the digest of its logits."""
_FEW = 1024
"""Most bytes of logits that an event keeps."""
NO_TOKEN = -1
"""Token of a row of logits with NaN."""
RETURNED, FINISHED = "returned", "landed"
"""Moments at which an argument is read again: after the call, and with its results."""


class Filled(NamedTuple):
    """Content of a device array before it was filled, and its new values."""

    before: bytes
    content: bytes
    mapped: Any = None
    """The array, mapped for reading."""


def raw(array: Any) -> bytes:
    """Return the bytes of an array, read in place."""
    return bytes(array.map(read=True))


def note_filling(host: Any, device: Any) -> None:
    """Record the values that fill a device array, if the invocation records them."""
    filled = FILLED.get()
    if filled is not None:
        mapped = device.map(read=True)
        filled[id(device)] = Filled(bytes(mapped), raw(host), mapped)


def mapped_of(array: Any, filled: Mapping[int, Filled] | None) -> Any:
    """Return an argument mapped for reading; reuses the mapping of its filling if recorded."""
    note = filled.get(id(array)) if filled else None
    return array.map(read=True) if note is None else note.mapped


def note_edit(device: Any, values: npt.NDArray[np.int64]) -> None:
    """Record a treatment's change of an argument: the new values count as filled."""
    filled = FILLED.get()
    if filled is not None and (note := filled.get(id(device))) is not None:
        filled[id(device)] = note._replace(content=values.astype(np.int64).tobytes())


def digest(logits: bytes) -> int:
    """Return a short digest of one row's logits."""
    return zlib.crc32(logits)


def noted_logits(logits: bytes) -> int | bytes:
    """Return the value for logits in an event `chosen`: the logits, or a digest if they are large.

    The digest of kept logits is computed when the event is read, not while the engine waits.
    """
    return logits if len(logits) <= _FEW else digest(logits)


def digest_of(noted: int | bytes | None) -> int | None:
    """Return the digest of recorded logits."""
    return digest(noted) if isinstance(noted, bytes) else noted


def results_of(noted: Scores | Chosen | None) -> Chosen | tuple[None, None]:
    """Return tokens and digests of an invocation's results; None if not recorded."""
    if isinstance(noted, Scores):
        return chosen_by(noted)
    return noted or (None, None)


def chosen_by(scores: Scores) -> Chosen:
    """Return the greedy token and the digest of the logits of each row.

    Of equally likely tokens the first is chosen; a row with NaN has `NO_TOKEN`.
    """
    if not scores.number:
        return [], []
    logits = decode(scores.data, scores.dtype).reshape(scores.number, -1)
    tokens: list[int] = logits.argmax(axis=1).tolist()  # the index of a NaN, if there is one
    for row, token in enumerate(tokens):
        best = logits[row, token]
        if best != best:
            tokens[row] = NO_TOKEN
    return tokens, [digest(row) for row in scores.rows]


def changes(
    names: Sequence[str],
    arguments: Sequence[Any],
    filled: Mapping[int, Filled],
    returned: Sequence[bytes],
    arrays: Mapping[str, tuple[tuple[int, ...], Any]],
) -> list[dict[str, Any]] | None:
    """Compare arguments with the values they were filled with; return differences, or None.

    `returned` are their bytes after the call returned, `arrays` their values with the results. The
    result has the first difference of each row of each argument: argument, row, column, filled,
    read, and the moment.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    read_then = dict(zip(map(id, arguments), returned, strict=False))
    for name, array in zip(names, arguments, strict=True):
        note, then = filled.get(id(array)), read_then.get(id(array))
        shape, values = arrays[name]
        if note is None or then is None or note.content == then == values.tobytes():
            continue
        due, before = (np.frombuffer(part, dtype=np.int64) for part in (note.content, note.before))
        for when, read in (
            (RETURNED, np.frombuffer(then, dtype=np.int64)),
            (FINISHED, np.asarray(values, dtype=np.int64)),
        ):
            differs = read != due
            if when == RETURNED and not _is_through(id(array), filled, read_then):
                differs &= read != before
            for at in np.flatnonzero(differs).tolist():
                row, column = divmod(at, shape[1]) if len(shape) > 1 else (at, 0)
                entry = {"argument": name, "row": row, "column": column, "filled": int(due[at]),
                         "read": int(read[at]), "moment": when}  # fmt: skip
                found.setdefault((name, row), entry)
    return list(found.values()) or None


def _is_through(array: int, filled: Mapping[int, Filled], read_then: Mapping[int, bytes]) -> bool:
    """Return whether the transfer to an array had ended when the call returned.

    It had if new values had arrived with it, or with a later transfer.
    """
    order = list(filled)
    for other in order[order.index(array) :]:
        if other in read_then:
            note = filled[other]
            before, due, read = (
                np.frombuffer(part, dtype=np.int64)
                for part in (note.before, note.content, read_then[other])
            )
            if ((due != before) & (read == due)).any():
                return True
    return False
