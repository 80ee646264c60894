"""Fork servers: child processes of one module, which share its imports.

The imports of a release take longer than to start an engine. `ForkServers(MODULE)` starts
`python -m analysis.core.fork_server MODULE`, which calls `MODULE.preload()` once, and forks for
each job (see `jobs.py`). The fork has its own session, writes its output to its directory, calls
`MODULE.main(directory)`, and ends with the status that this returns. If the owner ends, the server
and its forks are killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from analysis.core import children, jobs

_FORKS = 16
"""Forks of one server. The next has another hash seed and another layout of memory, so that not all
engines of a sweep share them."""
_AHEAD = 4
"""The next server is started when so many forks are left: it imports meanwhile."""
_START_S, _END_S = 120.0, 10.0
_TICK_S = 0.005


class Forked:
    """A fork: call `poll` until it returns a status."""

    def __init__(self, server: _Server, directory: Path) -> None:
        self._server, self.directory = server, directory
        self.pid: int | None = None
        self.returncode: int | None = None
        """The status; minus the signal that killed it."""
        self.errno: int | None = None
        """What the system answered if it could not fork."""
        self.lost = False
        """Whether its server ended before it."""

    def poll(self) -> int | None:
        """Return the status; None if it is running."""
        self._server.read()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self._server.write(signal=number, pid=self.pid)

    def kill(self) -> None:
        """Kill it and its session, and wait for its end."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self._server.wait(lambda: self.returncode is not None, _END_S)


class ForkServers:
    """Starts processes of a module; a context manager that ends them and its servers.

    `fork` starts a server for each interpreter when it is first needed.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._servers = dict[Path, list[_Server]]()

    def __enter__(self) -> ForkServers:
        return self

    def __exit__(self, *_: object) -> None:
        for servers in self._servers.values():
            for server in servers:
                server.close()

    def fork(self, python: Path, job: Mapping[str, Any], directory: Path) -> Forked:
        """Start a process with a job in a directory. Raises OSError if nothing can be started."""
        servers = [one for one in self._servers.get(python, ()) if not one.finished]
        self._servers[python] = servers
        usable = [server for server in servers if server.forks_left]
        if not usable or (len(usable) == 1 and usable[0].forks_left <= _AHEAD):
            usable.append(_Server(python, self._module))
            servers.append(usable[-1])
        return usable[0].fork(job, directory)


class _Server:
    """One server process."""

    def __init__(self, python: Path, module: str) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = children.start(
            [python, "-m", __name__, module, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed,
        )  # fmt: skip
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self.forks_left, self._ended = _FORKS, False
        self._unread = b""
        self._forks: dict[str, Forked] = {}
        """By directory; one that is used again has the later fork."""

    @property
    def finished(self) -> bool:
        """Whether it has ended, or has made all its forks, and they have; it is closed then."""
        self.read()
        working = self.forks_left or any(fork.returncode is None for fork in self._forks.values())
        if working and not self._ended:
            return False
        self.close()
        return True

    def fork(self, job: Mapping[str, Any], directory: Path) -> Forked:
        jobs.write_job(job, directory, self._process.pid)
        fork = Forked(self, directory)
        self._forks[str(directory)] = fork
        self.forks_left -= 1
        self.write(directory=str(directory))
        known = self.wait(lambda: fork.pid is not None or fork.returncode is not None, _START_S)
        if not known:
            self.close()
        return fork

    def write(self, **command: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()

    def wait(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > deadline:
                return False
            time.sleep(_TICK_S)
            self.read()
        return True

    def read(self) -> None:
        """Take over the messages of the server."""
        assert self._process.stdout is not None
        while not self._ended:
            try:
                data = os.read(self._process.stdout.fileno(), 65536)
            except BlockingIOError:
                return
            self._ended = not data
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        for fork in self._forks.values():
            if fork.returncode is None:
                self._lose(fork)

    def _take(self, message: dict[str, Any]) -> None:
        fork = self._forks[message["directory"]]
        fork.pid = message["pid"]
        fork.errno = message.get("errno")
        fork.returncode = message.get("status")

    def _lose(self, fork: Forked) -> None:
        """End a fork of a server that has ended: it was killed, too."""
        fork.lost, fork.returncode = True, self._process.wait(_END_S)
        with contextlib.suppress(OSError), (fork.directory / jobs.OUTPUT).open("ab") as output:
            self._printed.seek(0)
            output.write(self._printed.read())

    def close(self) -> None:
        """Kill the server and its forks."""
        children.kill_group(self._process)
        self.read()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._printed.close()
        self.forks_left = 0


def _serve(name: str, parent: int) -> None:
    """Fork for each directory that comes in, until the input ends; report what becomes of it."""
    children.die_with_parent(parent)
    messages = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no message
    module = importlib.import_module(name)
    # What cannot be imported fails in each fork, which says so.
    with contextlib.suppress(Exception):
        module.preload()
    # A collection in a fork would copy every page of what was imported.
    gc.collect()
    gc.freeze()
    # Threads of NumPy and PyArrow, which both prepare for a fork.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running = dict[int, str]()
    unread = b""
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 65536)
            _reap(running, messages)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            for command in map(json.loads, lines):
                if "signal" in command:
                    if command["pid"] in running:
                        _signal(command["pid"], command["signal"])
                    continue
                try:
                    pid = os.fork()
                except OSError as error:
                    _emit(messages, **command, pid=None, errno=error.errno, status=1)
                    continue
                if pid == 0:
                    for handle in (messages, ended, wake):
                        os.close(handle)
                    _become(module, Path(command["directory"]))
                running[pid] = command["directory"]
                _emit(messages, **command, pid=pid)


def _reap(running: dict[int, str], messages: int) -> None:
    for pid, directory in list(running.items()):
        # It stays a zombie until its session is killed, so that no other process has its id.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            continue
        _signal(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        del running[pid]
        code = os.waitstatus_to_exitcode(status)
        _emit(messages, directory=directory, pid=pid, status=code)


def _signal(pid: int, number: int) -> None:
    """Send a signal to a fork; SIGKILL to its session."""
    send = os.killpg if number == signal.SIGKILL else os.kill
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:  # it has no session of its own yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _emit(messages: int, **message: Any) -> None:
    os.write(messages, json.dumps(message).encode() + b"\n")


def _become(module: Any, directory: Path) -> NoReturn:
    """Run the job of a directory in this process, a fork, and end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(directory / jobs.OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for handle, standard in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(handle, standard)
        os.close(nothing)
        os.close(output)
        sys.argv = [module.__name__, str(directory)]
        status = module.main(directory)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        # What matters is on disk: do not wait for left native threads.
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
