"""A fork server starts processes that share imports, and loses none of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import wait_for

from analysis.core import children, fork_server, jobs
from analysis.core.fork_server import Forked, ForkServers

_MODULE = """
import os, subprocess, sys, time
from analysis.core import jobs

loaded = []

def preload():
    print("a library prints")
    loaded.append(os.getpid())
    if os.environ.get("NO_FORKS"):
        os.fork = refuse

def refuse():
    raise BlockingIOError(11, "Resource temporarily unavailable")

def main(directory):
    job = jobs.read_job(directory)
    assert loaded == [os.getppid()]
    print("out", job["what"], sys.argv, flush=True)
    if job["what"] == "raise":
        raise ValueError("mine")
    if job["what"] == "sleep":
        print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
        time.sleep(1000)
    return job["status"]
"""


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServers]:
    (tmp_path / "forked_module.py").write_text(_MODULE)
    path = os.pathsep.join([str(tmp_path), children.environment().get("PYTHONPATH", "")])
    environment = {**children.environment(), "PYTHONPATH": path}
    monkeypatch.setattr(children, "environment", lambda: environment)
    with ForkServers("forked_module") as made:
        yield made


def fork(servers: ForkServers, directory: Path, what: str = "end", status: int = 0) -> Forked:
    return servers.fork(Path(sys.executable), {"what": what, "status": status}, directory)


def ended(forked: Forked) -> int | None:
    wait_for(lambda: forked.poll() is not None, "the end of a fork")
    return forked.returncode


def output(directory: Path) -> str:
    return (directory / jobs.OUTPUT).read_text()


def asleep(directory: Path) -> psutil.Process:
    """Return the child of a fork that sleeps."""
    wait_for(lambda: output(directory).count("\n") == 2, "the fork's child")
    return psutil.Process(int(output(directory).split()[-1]))


def test_forks_end_with_their_own_status_and_output(servers: ForkServers, tmp_path: Path) -> None:
    made = [fork(servers, tmp_path / str(n), status=n) for n in (0, 1, 7, 130)]
    assert [ended(one) for one in made] == [0, 1, 7, 130]
    for one in made:
        assert output(one.directory) == f"out end ['forked_module', '{one.directory}']\n"
    raised = fork(servers, tmp_path / "raised", "raise")
    assert ended(raised) == 1
    assert output(raised.directory).endswith("ValueError: mine\n")
    assert len({one.pid for one in [*made, raised]}) == 5
    assert not any(one.lost for one in made)


def test_after_some_forks_there_is_another_server(
    servers: ForkServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_FORKS", 3)
    monkeypatch.setattr(fork_server, "_AHEAD", 1)
    slow = fork(servers, tmp_path / "slow", "sleep")
    assert slow.pid is not None
    first = psutil.Process(slow.pid).ppid()
    made = [fork(servers, tmp_path / str(n), status=n) for n in range(7)]
    assert [ended(one) for one in made] == list(range(7))
    assert slow.poll() is None  # its server stays as long as it does
    assert psutil.Process(slow.pid).ppid() == first
    slow.kill()
    assert ended(slow) == -signal.SIGKILL
    assert ended(fork(servers, tmp_path / "last", status=8)) == 8
    assert not psutil.pid_exists(first)


def test_a_killed_fork_takes_its_session_with_it(servers: ForkServers, tmp_path: Path) -> None:
    forked = fork(servers, tmp_path / "one", "sleep")
    sleeper = asleep(tmp_path / "one")
    forked.send_signal(signal.SIGTERM)
    assert ended(forked) == -signal.SIGTERM
    wait_for(lambda: not sleeper.is_running(), "the end of the fork's child")
    forked.kill()  # does nothing
    forked.send_signal(signal.SIGTERM)
    assert ended(fork(servers, tmp_path / "two")) == 0


def test_forks_of_a_server_that_was_killed_are_lost_and_the_next_has_another(
    servers: ForkServers, tmp_path: Path
) -> None:
    forked = fork(servers, tmp_path / "one", "sleep")
    assert forked.pid is not None
    process = psutil.Process(forked.pid)
    process.parent().kill()
    assert ended(forked) == -signal.SIGKILL
    assert forked.lost
    wait_for(lambda: not process.is_running(), "the end of the fork")
    assert ended(fork(servers, tmp_path / "two")) == 0


def test_a_module_that_cannot_be_imported_is_said_in_the_output(tmp_path: Path) -> None:
    with ForkServers("no_such_module") as servers:
        forked = fork(servers, tmp_path / "one")
        assert ended(forked) == 1
    assert forked.lost
    assert jobs.last_line(tmp_path / "one").endswith("No module named 'no_such_module'")


def test_a_system_that_cannot_fork_is_an_error_number(
    servers: ForkServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**children.environment(), "NO_FORKS": "1"}
    monkeypatch.setattr(children, "environment", lambda: environment)
    refused = fork(servers, tmp_path / "one")
    assert ended(refused) == 1
    assert refused.errno == errno.EAGAIN
    assert not refused.lost


_OWNER = """
import os, sys, time
from pathlib import Path
from analysis.core import children
from analysis.core.fork_server import ForkServers
children.environment = lambda: dict(os.environ)
with ForkServers("forked_module") as servers:
    job = {"what": "sleep", "status": 0}
    forked = servers.fork(Path(sys.executable), job, Path(sys.argv[1]))
    print(forked.pid, flush=True)
    time.sleep(1000)
"""


def test_nothing_outlives_a_killed_owner(servers: ForkServers, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path / "job")],
        stdout=subprocess.PIPE,
        env=children.environment(),
    )
    assert owner.stdout is not None
    with owner.stdout:
        forked = psutil.Process(int(owner.stdout.readline()))
        left = [forked, forked.parent()]
        owner.kill()
        owner.wait(60)
    wait_for(lambda: not any(one.is_running() for one in left), "the end of the server")
