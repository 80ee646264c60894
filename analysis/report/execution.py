"""One notebook executed by papermill: progress, a deadline, a second try if its kernel dies."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from analysis.sweep.progress import LINES

# The first death may be a freeze that the engine's watchdog ended: the second try resumes from
# what is on disk.
TRIES = 2
_START_TIMEOUT_S = 120
_PAUSE_S = 15.0
"""Least time between two lines that a cell prints on the screen."""


@dataclass(frozen=True)
class Death:
    """A kernel that died: what happened, and the file with every thread's stack, if any."""

    sentence: str
    dump: Path | None


@dataclass(frozen=True)
class Execution:
    """An executed notebook, as far as it came; `problem` is one sentence, or empty."""

    notebook: Any
    problem: str
    deaths: tuple[Death, ...]
    kernel_died: bool = False

    @property
    def ok(self) -> bool:
        """True if it ran to its end."""
        return not self.problem


def execute(
    source: Path,
    target: Path,
    *,
    kernel: str,
    parameters: Mapping[str, Any],
    run_dir: Path,
    cell_timeout_s: int,
    screen: TextIO,
) -> Execution:
    """Execute `source` in `kernel`, saved at `target` after every cell.

    Failures of the notebook are in the result, not raised. If the kernel dies, the
    notebook runs once more with the same parameters, so that a sweep in `run_dir` is resumed; the
    newest `watchdog*.txt` below it is kept as `kernel-death-N.txt` and named with the death.
    """
    deaths: list[Death] = []
    for number in range(1, TRIES + 1):
        progress = _Progress(source, screen)
        before = _dumps(run_dir)
        with _printed_lines():
            problem, died = _attempt(source, target, kernel, parameters, cell_timeout_s, progress)
        progress.end_cell()
        if not died:
            return Execution(_load(target, source), problem, tuple(deaths))
        new = [path for path in _dumps(run_dir) if path not in before]
        dump = _keep(new[-1], run_dir / f"kernel-death-{number}.txt") if new else None
        last = number == TRIES
        what = f"The kernel died {progress.where}"
        what += "." if last else " and was started once more; what had finished was kept."
        if dump is None:
            what += " It left no watchdog dump."
        deaths.append(Death(what, dump))
        screen.write(f"  {what}" + (f" See {dump}" if dump else "") + "\n")
        screen.flush()
    return Execution(
        _load(target, source), "the kernel died twice", tuple(deaths), kernel_died=True
    )


@contextmanager
def _printed_lines() -> Iterator[None]:
    """Let sweeps in kernels that start meanwhile print lines, for the screen, and no bar."""
    before = os.environ.get(LINES)
    os.environ[LINES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[LINES]


def _attempt(
    source: Path,
    target: Path,
    kernel: str,
    parameters: Mapping[str, Any],
    cell_timeout_s: int,
    progress: _Progress,
) -> tuple[str, bool]:
    """Run the notebook once; return a sentence on what stopped it, and if the kernel died."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=dict(parameters),
            kernel_name=kernel,
            cwd=str(source.resolve().parent),
            progress_bar=False,
            start_timeout=_START_TIMEOUT_S,
            execution_timeout=cell_timeout_s,
            on_cell_execute=progress.on_cell,
            # Without this each kernel prints a warning about its connection, and at times an error
            # when it ends. What goes wrong in a cell is in the notebook.
            extra_arguments=["--log-level=50"],
            stdout_file=progress,
            stderr_file=progress,
        )
    except papermill.PapermillExecutionError as error:
        return f"A cell stopped with {error.ename}: {_first_line(error.evalue)}", False
    except DeadKernelError:
        return "the kernel died", True
    except CellTimeoutError:
        return f"A cell did not end within {cell_timeout_s} s and was stopped.", False
    except RuntimeError as error:
        # jupyter_client raises this when a kernel dies before its first message.
        if "Kernel died" in str(error) or "Kernel didn't respond" in str(error):
            return "the kernel died", True
        raise
    return "", False


class _Progress(io.TextIOBase):
    """Reports which cell runs, under which heading, and what it prints: a line now and then.

    A sweep prints a line for each trial. Of what a cell prints within `_PAUSE_S` only the last line
    is shown; the page has all.
    """

    def __init__(self, source: Path, screen: TextIO) -> None:
        import nbformat

        cells = nbformat.read(source, as_version=4).cells
        self._screen = screen
        self._total = sum(1 for cell in cells if cell.cell_type == "code" and cell.source.strip())
        self._headings: dict[str, str] = {}
        heading = ""
        for cell in cells:
            if cell.cell_type == "markdown":
                titles = [x for x in cell.source.splitlines() if x.startswith("#")]
                heading = titles[-1].lstrip("# ") if titles else heading
            self._headings[cell.get("id", "")] = heading
        self._number = 0
        self.where = "before its first cell"
        self._part = ""
        """A line that has not ended yet."""
        self._held: str | None = None
        """The last line that is not shown yet."""
        self._next_s = 0.0

    def write(self, text: str) -> int:
        """Take what a cell prints."""
        *lines, self._part = (self._part + text).split("\n")
        for line in filter(str.strip, lines):
            self._held = line
            if time.monotonic() >= self._next_s:
                self.flush_held()
        return len(text)

    def end_cell(self) -> None:
        """Show the last line of a cell, if it is not shown yet."""
        self.write("\n")
        self.flush_held()
        self._next_s = 0.0

    def flush_held(self) -> None:
        """Show the last line that is not shown yet."""
        held, self._held = self._held, None
        if held is not None:
            self._next_s = time.monotonic() + _PAUSE_S
            self._screen.write(f"    {held.strip()}\n")
            self._screen.flush()

    def on_cell(self, cell: Any, cell_index: int) -> None:
        """Report a cell that starts; the cell with the injected parameters is not counted."""
        if "injected-parameters" in cell.metadata.get("tags", []):
            return
        self.end_cell()
        self._number += 1
        heading = self._headings.get(cell.get("id", ""), "")
        place = f"cell {self._number} of {self._total}" + (f", {heading}" if heading else "")
        self.where = f"while it ran {place}"
        self._screen.write(f"  {place}\n")
        self._screen.flush()


def _dumps(run_dir: Path) -> list[Path]:
    """Return the watchdogs' dumps that are not empty, the oldest first."""
    found = [path for path in run_dir.rglob("watchdog*.txt") if path.stat().st_size]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def _keep(dump: Path, target: Path) -> Path:
    """Copy a dump to a path that the second try does not overwrite."""
    shutil.copyfile(dump, target)
    return target


def _load(target: Path, source: Path) -> Any:
    """Return the notebook as executed; as written, if not even that was saved."""
    import nbformat

    return nbformat.read(target if target.is_file() else source, as_version=4)


def _first_line(text: str) -> str:
    lines = str(text).strip().splitlines()
    return lines[0] if lines else "without a message."
