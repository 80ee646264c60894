"""The protocol of child modules: a JSON job in, JSON lines out.

A job's directory has `job.json`, `answers.jsonl` (one line an answer, written at once) and
`output.txt` (the child's output). The child is killed when its parent ends.

Parent: `for answer in ask(python, "analysis.model.oracle", job, "The reference decoder", ...)`.
Child: `if __name__ == "__main__": serve(work)`; `work(job, emit)` calls `emit` for each answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from analysis.core import children
from analysis.core.errors import CachelabError

JOB, ANSWERS, OUTPUT = "job.json", "answers.jsonl", "output.txt"
_TICK_S = 0.02

Emit = Callable[[Any], None]
"""Writes one answer: any JSON value."""


class Child:
    """A child process that runs a module on a job, with its files in `directory`."""

    def __init__(self, python: Path, module: str, job: Mapping[str, Any], directory: Path) -> None:
        self.directory = directory
        write_job(job, directory, os.getpid())
        with (directory / OUTPUT).open("wb") as output:
            self.process = children.start(
                [python, "-m", module, directory], stdout=output, stderr=subprocess.STDOUT
            )
        self._read = 0

    def new_answers(self) -> list[Any]:
        """Return the answers since the last call."""
        with (self.directory / ANSWERS).open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        return [json.loads(line) for line in whole.split(b"\n") if line]

    def kill(self) -> None:
        """Kill the child and its children."""
        children.kill_group(self.process)


def ask(
    python: Path,
    module: str,
    job: Mapping[str, Any],
    name: str,
    *,
    error: type[CachelabError],
    first_s: float,
    next_s: float | None = None,
) -> Iterator[Any]:
    """Start a module on a job, yield its answers as they arrive, and end it.

    `name` is the child's name in messages. Raises `error` if no answer arrives within `first_s`
    seconds (`next_s` after an earlier answer), or if the child fails, with the message of its
    CachelabError.
    """
    with children.scratch("cachelab-job") as directory:
        child = Child(python, module, job, directory)
        try:
            patience_s, began, ended = first_s, time.monotonic(), False
            while not ended:
                ended = child.process.poll() is not None
                for answer in child.new_answers():
                    if isinstance(answer, dict) and "error" in answer:
                        raise error(answer["error"])
                    yield answer
                    patience_s, began = next_s or first_s, time.monotonic()
                if not ended and time.monotonic() - began > patience_s:
                    raise error(
                        f"{name} was killed, because it gave no answer for {patience_s:g} s. Run it"
                        " again, with more time or a smaller task."
                    )
                if not ended:
                    time.sleep(_TICK_S)
            if child.process.returncode != 0:
                raise error(f"{name} failed: {last_line(child.directory)}")
        finally:
            child.kill()


def read_lines(file: Path) -> list[Any]:
    """Return the JSON lines of a file, without an incomplete last line; [] if it is missing."""
    answers = []
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        with contextlib.suppress(ValueError):
            answers.append(json.loads(line))
    return answers


def write_line(stream: Any, answer: Any) -> None:
    """Write one line in a single write, so that a kill loses nothing. Raises OSError."""
    line = json.dumps(answer, default=plain).encode() + b"\n"
    if stream.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), stream.name)


def last_line(directory: Path) -> str:
    """Return the last line of the output of a job's process."""
    lines = children.tail(directory / OUTPUT, 4000).strip().splitlines()
    return lines[-1].strip() if lines else "no output."


def write_job(job: Mapping[str, Any], directory: Path, parent: int) -> None:
    """Make a job's directory, for a child of the process `parent`. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / JOB).write_text(json.dumps({**job, "parent": parent}))
    for name in (ANSWERS, OUTPUT):
        (directory / name).touch()


def read_job(directory: Path) -> dict[str, Any]:
    """Return the job of this process, and make the kernel kill it when its parent ends."""
    job: dict[str, Any] = json.loads((directory / JOB).read_bytes())
    children.die_with_parent(job.pop("parent"))
    return job


def serve(work: Callable[[dict[str, Any], Emit], None]) -> NoReturn:
    """Run the job of the directory in the command line, and exit.

    After a CachelabError the status is 1, and the parent gets its message. The process exits even
    if native threads are still running.
    """
    directory, status = Path(sys.argv[1]), 0
    job = read_job(directory)
    with (directory / ANSWERS).open("ab", buffering=0) as answers:
        try:
            work(job, lambda answer: write_line(answers, answer))
        except CachelabError as error:
            write_line(answers, {"error": str(error)})
            status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, and any other value as text."""
    return value.item() if hasattr(value, "item") else str(value)
