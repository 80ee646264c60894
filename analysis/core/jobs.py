"""The protocol of child modules: a JSON job in, JSON lines out.

A job's directory holds `job.json`, `answers.jsonl` (one line an answer, on disk as soon as it is
known) and `output.txt` (everything that the child printed). The child is killed when its parent
ends.

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
    """A module that runs on a job, with its files in `directory`."""

    def __init__(self, python: Path, module: str, job: Mapping[str, Any], directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        (directory / JOB).write_text(json.dumps({**job, "parent": os.getpid()}))
        (directory / ANSWERS).touch()
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

    def last_line(self) -> str:
        """Return the last line that the child printed."""
        lines = children.tail(self.directory / OUTPUT, 4000).strip().splitlines()
        return lines[-1].strip() if lines else "it printed nothing."

    def kill(self) -> None:
        """End the child and everything that it started."""
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
    """Start a module on a job, yield its answers as they come, and end it.

    `name` stands for the child in messages. Raises `error` if no answer comes within `first_s`
    seconds (`next_s` after another answer), if the child fails, or with the message of a
    CachelabError of the child.
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
                        f"{name} gave no answer for {patience_s:g} s and was ended: run the same"
                        " again, with more time or less to do."
                    )
                if not ended:
                    time.sleep(_TICK_S)
            if child.process.returncode != 0:
                raise error(f"{name} failed: {child.last_line()}")
        finally:
            child.kill()


def read_lines(file: Path) -> list[Any]:
    """Return the JSON lines of a file, none if there is no file; a line cut short is left out."""
    answers = []
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        with contextlib.suppress(ValueError):
            answers.append(json.loads(line))
    return answers


def write_line(stream: Any, answer: Any) -> None:
    """Write one whole line at once, so that a kill loses nothing. OSError if the disk is full."""
    line = json.dumps(answer, default=plain).encode() + b"\n"
    if stream.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), stream.name)


def read_job(directory: Path) -> dict[str, Any]:
    """Return the job of this process, and have the kernel kill it when its parent ends."""
    job: dict[str, Any] = json.loads((directory / JOB).read_bytes())
    children.die_with_parent(job.pop("parent"))
    return job


def serve(work: Callable[[dict[str, Any], Emit], None]) -> NoReturn:
    """Do the job of the directory that the command line names, and exit.

    After a CachelabError the status is 1, and the parent gets its message. Native threads that are
    left over do not keep the process.
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
    """Return a number of NumPy as one of Python, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
