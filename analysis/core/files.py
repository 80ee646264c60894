"""Reads and writes whole files, with messages for unreadable ones."""

from __future__ import annotations

import os
import pwd
import stat
import uuid
from pathlib import Path

from analysis.core.errors import RunError


def contents(file: Path) -> bytes:
    """Return the content of a regular file.

    Raises FileNotFoundError, or RunError with the reason (and the owner if access is denied).
    """
    try:
        # Non-blocking, because a pipe would wait for a writer.
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise RunError(
                    f"{file} is not a regular file. Move it elsewhere, then restore the file or"
                    " measure it again."
                )
            with open(handle, "rb", closefd=False) as stream:
                return stream.read()
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error


def names_in(directory: Path) -> set[str]:
    """Return the names in a directory. Raises as `contents` does, and NotADirectoryError."""
    try:
        return set(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise unreadable(directory, error) from error


def unreadable(place: Path, error: OSError) -> RunError:
    """Return an error with the reason why a file or directory cannot be read, and the fix."""
    if not isinstance(error, PermissionError):
        return RunError(f"{place} cannot be read: {error.strerror or error}.")
    try:
        while True:
            try:
                facts = os.stat(place)
                break
            except PermissionError:  # access to the directory is denied
                place = place.parent
    except OSError as worse:
        return RunError(f"{place} cannot be read: {worse.strerror or worse}.")
    mode = stat.filemode(facts.st_mode)
    if facts.st_uid == os.geteuid():
        return RunError(
            f"{place} is yours, but you have no read permission ({mode}). Add it with"
            f" `chmod -R u+rX {place}`."
        )
    owner = _user(facts.st_uid)
    return RunError(
        f"You have no read permission for {place}, which belongs to {owner} ({mode}). Ask {owner}"
        f" for `chmod -R a+rX {place}`, or for a copy."
    )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: to a temporary name in its directory, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Sync a file or directory to disk, so that no rename precedes its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
