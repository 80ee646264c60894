"""Child processes that end with their parent: environment, scratch folders, kill, output."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from analysis.core.paths import repo_root

_PR_SET_PDEATHSIG = 1
_TICK_S = 0.05


_UNTIL_WE_END = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def environment() -> dict[str, str]:
    """Return the environment of a child.

    The child can import this checkout, but not the user's site-packages or working directory.
    """
    ours = {"PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    variables = {**os.environ, **ours}
    if root := repo_root():
        variables["PYTHONPATH"] = str(root)
    elif paths := variables.get("PYTHONPATH"):
        absolute = [path for path in paths.split(os.pathsep) if os.path.isabs(path)]
        variables["PYTHONPATH"] = os.pathsep.join(absolute)
    return variables


def start(command: Sequence[str | Path], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a child in its own session; end it with `kill_group`.

    `streams` are `stdin` (default: no input), `stdout` and `stderr`, as for `subprocess.Popen`.
    """
    return subprocess.Popen(
        [str(part) for part in command],
        env=environment(),
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, **streams},
    )


def run(command: Sequence[str | Path], output: Path, timeout_s: float) -> int:
    """Run a child to its end, its output in a file, and return its exit status.

    Raises subprocess.TimeoutExpired after `timeout_s`. Its children are killed in any case.
    """
    with output.open("wb") as printed:
        child = start(command, stdout=printed, stderr=printed)
    try:
        return child.wait(timeout_s)
    finally:
        kill_group(child)


def until_we_end(program: str | Path, *arguments: str | Path) -> list[str]:
    """Return a command that runs a program which the kernel kills when this thread ends."""
    command = [sys.executable, "-I", "-S", "-c", _UNTIL_WE_END, os.getpid(), program, *arguments]
    return [str(part) for part in command]


@contextmanager
def scratch(purpose: str, directory: Path | None = None) -> Iterator[Path]:
    """Yield a new folder `PURPOSE-...`, and remove folders of killed processes.

    It is in `directory` (default: that of temporary files). Its owner holds a lock on it, which the
    system releases when the owner ends.
    """
    directory = directory or Path(tempfile.gettempdir())
    for left in directory.glob(f"{purpose}-*"):
        with suppress(OSError):
            if (lock := _locked(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    lock = None
    while lock is None:  # another process may remove it before it is locked
        path = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=directory))
        try:
            lock = _locked(path)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked(path: Path) -> int | None:
    """Lock a folder and return its descriptor; None if it is missing or locked. Raises OSError."""
    handle, mine = None, False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(handle), os.stat(path))
        return handle if mine else None
    except (FileNotFoundError, BlockingIOError):
        return None
    finally:
        if handle is not None and not mine:
            os.close(handle)


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent process, `parent`, ends.

    This also works in a process that is frozen with the GIL held, because no Python code runs.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)


def kill_group(process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> None:
    """Kill a child with its own session, and its children, and wait for its end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)


def end_tree(
    process: subprocess.Popen[bytes], timeout_s: float, hurry: Callable[[], bool] = lambda: False
) -> None:
    """Terminate a child; after `timeout_s`, or when `hurry()`, kill it and its children.

    The children may have their own sessions, as Jupyter's kernels do.
    """
    import psutil

    tree = []
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline and not hurry():
        time.sleep(_TICK_S)
    for left in tree:
        with suppress(psutil.NoSuchProcess):
            left.kill()  # does nothing if the process id was reused
    kill_group(process)
    psutil.wait_procs(tree, timeout_s)


def tail(path: Path, size: int = 20_000) -> str:
    """Return the last `size` bytes of a file as text; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
