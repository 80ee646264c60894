"""User-correctable errors: a message says what is wrong and how to fix it."""

from __future__ import annotations

import errno
import math
import operator
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SHOWN = 60


class CachelabError(Exception):
    """Base of the errors that the command line prints without a traceback."""


class EngineError(CachelabError):
    """The engine could not be started or used as configured."""


class MachineError(CachelabError):
    """The machine lacks disk space, memory, file descriptors or the package."""


class ModelError(CachelabError):
    """A model directory, or a file in it, cannot be used."""


class PlaceError(CachelabError):
    """A file or a directory cannot be written."""


class ReleaseError(CachelabError):
    """A shortfin release is unknown or has no environment."""


class RunError(CachelabError):
    """A run on disk is missing, corrupt or of another plan."""


class WorkloadError(CachelabError):
    """A workload cannot be read or made."""


_SHORT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ETIMEDOUT}
    | {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
)
"""Errors of a machine that lacks resources, maybe temporarily."""


def lack_behind(error: BaseException) -> OSError | None:
    """Return the system error if the machine lacked resources, else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if isinstance(cause, RuntimeError) and str(cause) == "can't start new thread":
            return OSError(errno.EAGAIN, "No more threads can be started")
        if isinstance(cause, OSError) and cause.errno in _SHORT:
            return cause
        cause = cause.__cause__
    return None


def lacking(error: BaseException) -> str | None:
    """Return in words what the machine lacked, if that caused the error, else None."""
    lack = lack_behind(error)
    if lack is None:
        return None
    return f"{lack.strerror}: {lack.filename}" if lack.filename else str(lack.strerror)


def is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and mappings are nested more than `levels` deep."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return False
    return levels == 0 or any(is_deeper(item, levels - 1) for item in value)


def whole_number(
    value: object,
    what: str,
    least: int,
    most: int,
    error: type[CachelabError] = EngineError,
    why: str = "",
) -> int:
    """Return `value` as an int between two bounds.

    Raises `error`, with `what`, the bounds, and the reason `why` for the upper one.
    """
    bounds = f"from {least} to {most}" + (f", as {why}, and" if why else ",")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise error(f"{what} must be a whole number {bounds} not {shown(value)}.") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise error(f"{what} must be {bounds} not {shown(value)}.")
    return number


def seconds(
    value: object, what: str, most: float, error: type[CachelabError] = EngineError
) -> float:
    """Return `value` as a float above 0 and at most `most`. Raises `error`, with `what`."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= most or isinstance(value, str | bool):
        raise error(f"{what} must be more than 0 and at most {most:g} seconds, not {shown(value)}.")
    return number


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an OSError into a PlaceError about `place`, not about a temporary file next to it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise PlaceError(f"{place} cannot be written: {reason}. Choose another place.") from error


def check_writable(directory: Path) -> None:
    """Create a directory if missing. Raises PlaceError if files cannot be created in it."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"1")


def shown(value: Any) -> str:
    """Return a value as short text on one line."""
    if isinstance(value, str) and len(value) > _SHOWN:
        value = value[: _SHOWN - 3] + "…"
    try:
        text = " ".join(printable(repr(value)).split())
    except Exception:  # an int of too many digits, or deep self-reference
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def printable(text: str) -> str:
    """Return a text that is safe on a terminal: everything but newlines and tabs is escaped.

    Request ids, prompts and file names may have escape sequences and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8 (False with lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
