"""What the user can mend: a message is one sentence on what is wrong and how to mend it."""

from __future__ import annotations

import errno
import math
import operator
import os
import textwrap
from typing import Any


class CachelabError(Exception):
    """Base of every error that the command line prints as one sentence, without a traceback."""


class EngineError(CachelabError):
    """The engine could not be started or asked as configured."""


class MachineError(CachelabError):
    """The machine lacked what a process of ours needs: disk, memory, descriptors, the package."""


class ModelError(CachelabError):
    """A model directory, or something in it, cannot be used."""


class ReleaseError(CachelabError):
    """A shortfin release is unknown, or has no environment here."""


class RunError(CachelabError):
    """A run on disk is missing, corrupt or of another plan."""


class WorkloadError(CachelabError):
    """A workload cannot be read or made."""


_SHORT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ETIMEDOUT}
    | {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
)
"""What an OSError says where a machine has too little of something, perhaps for a moment only."""


def lacking(error: BaseException) -> str | None:
    """Return what the machine lacked where that is what an error comes from, else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return os.strerror(errno.ENOMEM)
        if isinstance(cause, OSError) and cause.errno in _SHORT:
            where = f": {cause.filename}" if cause.filename else ""
            return f"{os.strerror(cause.errno)}{where}"
        cause = cause.__cause__
    return None


def whole_number(
    value: object,
    what: str,
    least: int,
    most: int,
    error: type[CachelabError] = EngineError,
) -> int:
    """Return `value` as an int between two bounds. Raises `error` that names `what`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise error(
            f"{what} must be a whole number from {least} to {most}, not {shown(value)}."
        ) from None
    if isinstance(value, bool) or not least <= number <= most:
        raise error(f"{what} must be from {least} to {most}, not {shown(value)}.")
    return number


def seconds(
    value: object, what: str, most: float, error: type[CachelabError] = EngineError
) -> float:
    """Return `value` as a float above 0, at most `most`. Raises `error` that names `what`."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= most or isinstance(value, str | bool):
        raise error(f"{what} must be more than 0 and at most {most:g} seconds, not {shown(value)}.")
    return number


def shown(value: Any) -> str:
    """Return how a value that was given looks in a sentence: in one line, and short."""
    return textwrap.shorten(repr(value), 60, placeholder="…")
