"""What tests of several directories share, beside the fixtures in conftest.py."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.shortfin.environments import python_of
from analysis.shortfin.releases import reported, row_of, supported

ROOT = Path(__file__).parent.parent
REPORTED, NEWEST = reported(), supported()[-1]
CHOSEN = tuple(os.environ.get("CACHELAB_TEST_RELEASES", "").split())
"""Releases that `make test-releases` was given; then only tests of an engine of these are run."""
RELEASES = CHOSEN or (REPORTED, NEWEST)
CHILD_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
_PREPARATIONS = {
    # A batch waits 4 ms to fill, not up to 250 ms.
    "strobes": """
from shortfin_apps.llm.components.service import BatcherProcess
BatcherProcess.STROBE_SHORT_DELAY = BatcherProcess.STROBE_LONG_DELAY = 0.004
""",
    # Invocations do not overlap, or most tests of more requests than fit into a batch would freeze.
    "shared-worker": """
from analysis.shortfin.config import EngineConfig
EngineConfig.__init__.__kwdefaults__["serialise_invocations"] = True
""",
    # A request for one token does not end the engine; see the treatment `ignore-unreserved`.
    "late-reservation": """
from shortfin_apps.llm.components.scheduler import Scheduler
_remove = Scheduler._remove
Scheduler._remove = lambda self, *, rid: rid in self._workgroup_placement and _remove(self, rid=rid)
""",
    # No request is refused by chance; see the treatment `separate-fibers`.
    "shared-fiber-list": """
from shortfin_apps.llm.components.batcher import FiberPool
_made = FiberPool.__init__
FiberPool.__init__ = lambda pool, fibers, idle_fibers: _made(pool, fibers, list(idle_fibers))
""",
}


_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Child:
    """A child process that ended: `reply` is the JSON that it gave to `say`."""

    reply: Any
    returncode: int
    stdout: str
    stderr: str


ChildRunner = Callable[..., Child]


def has(release: str, capability: str) -> bool:
    """Return whether a release has a capability; see `analysis.shortfin.releases`."""
    return capability in row_of(release).capabilities


def dialect(release: str) -> str:
    """Return the dialect of a release's cache."""
    return row_of(release).cache or ""


def with_capability(*capabilities: str) -> str:
    """Return the oldest release under test with these capabilities."""
    return next(r for r in (*RELEASES, REPORTED, NEWEST) if r in supported(*capabilities))


def preparation(release: str, *, short_strobes: bool = True) -> str:
    """Return the Python source that makes an engine of a release fit for tests of other things."""
    return "".join(
        source
        for name, source in _PREPARATIONS.items()
        if has(release, name) and (short_strobes or name != "strobes")
    )


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; a deadline turns a bug into a failure."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {_DEADLINE_S:g} s for {what}"
        time.sleep(0.05)


def run_python(
    release: str, source: str, *arguments: str, timeout_s: float, short_strobes: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own, of a release's environment, until it ends.

    Raises ReleaseError without that environment, TimeoutExpired after `timeout_s`.
    """
    source = preparation(release, short_strobes=short_strobes) + source
    server = _fork_server(release)
    assert server.stdin is not None
    with tempfile.TemporaryDirectory(prefix="cachelab-test-") as directory:
        files = [Path(directory, name) for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        request = {"source": source, "arguments": arguments,
                   "stdout": str(files[0]), "stderr": str(files[1])}  # fmt: skip
        server.stdin.write(json.dumps(request).encode() + b"\n")
        process = _answer(server, timeout_s)
        status = None if process is None else _answer(server, timeout_s)
        if process is not None and status is None:
            os.kill(process, signal.SIGKILL)
            _answer(server, timeout_s)
        texts = [file.read_text(errors="replace") for file in files]
    if status is None:
        raise subprocess.TimeoutExpired(source, timeout_s, *texts)
    return subprocess.CompletedProcess(source, status, *texts)


@functools.cache
def _fork_server(release: str) -> subprocess.Popen[bytes]:
    """Return the process of a release from which all children are forked; it ends with this one."""
    return subprocess.Popen(
        [str(python_of(release)), str(Path(__file__).with_name("fork_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=ROOT,
        env=CHILD_ENVIRONMENT,
    )


def _answer(server: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Return the number that a fork server sends next; None if none comes in time."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], timeout_s)
    return int(server.stdout.readline()) if ready else None
