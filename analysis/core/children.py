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

    This checkout can be imported, the user's site-packages and the working directory cannot.
    """
    ours = {"PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    variables = {**os.environ, **ours}
    if root := repo_root():
        variables["PYTHONPATH"] = str(root)
    elif paths := variables.get("PYTHONPATH"):
        absolute = [path for path in paths.split(os.pathsep) if os.path.isabs(path)]
        variables["PYTHONPATH"] = os.pathsep.join(absolute)
    return variables


def start(command: Sequence[str | Path], **output: Any) -> subprocess.Popen[bytes]:
    """Start a child that leads a session of its own, without input; end it with `kill_group`.

    `output` are `stdout` and `stderr`, as for `subprocess.Popen`.
    """
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
        **output,
    )


def until_we_end(program: str | Path, *arguments: str | Path) -> list[str]:
    """Return the command for another program, which the kernel kills when this thread ends."""
    command = [sys.executable, "-I", "-S", "-c", _UNTIL_WE_END, os.getpid(), program, *arguments]
    return [str(part) for part in command]


@contextmanager
def scratch(purpose: str, directory: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, `PURPOSE-...`, and remove those that killed processes left behind.

    It lies in `directory`, by default that of temporary files. The owner holds a lock on it, which
    the system releases when the owner ends.
    """
    directory = directory or Path(tempfile.gettempdir())
    for left in directory.glob(f"{purpose}-*"):
        with suppress(OSError):
            if (lock := _locked(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    lock = None
    while lock is None:  # before it is locked another process may take it for one left behind
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
    """Lock a folder and return its descriptor; None if it is gone or locked. Raises OSError."""
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
    """Make the kernel kill this process when `parent`, which started it, ends.

    No Python has to run here, so it also works in a process that is frozen with the GIL held.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def kill_group(process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> None:
    """Kill a child that leads a session of its own, with what it started, and wait for its end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)


def end_tree(
    process: subprocess.Popen[bytes], timeout_s: float, hurry: Callable[[], bool] = lambda: False
) -> None:
    """Terminate a child; after `timeout_s`, or when `hurry()`, kill it and all that it started.

    Its children may lead sessions of their own, as Jupyter's kernels do.
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
            left.kill()  # not another process that got its number since
    kill_group(process)
    psutil.wait_procs(tree, timeout_s)


def tail(path: Path, size: int = 20_000) -> str:
    """Return the last `size` bytes of a file as text, "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
