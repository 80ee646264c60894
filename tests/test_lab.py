"""`cachelab lab` ends JupyterLab and its kernels, whatever signal asks for it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from support import CHILD_ENVIRONMENT, ROOT

LAB = """
import sys
if sys.stdin.isatty():  # be what the terminal's Ctrl-C goes to
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from analysis.cli import main
main()
"""
PATIENCE_S = 120


def is_kernel(process: psutil.Process) -> bool:
    """Return whether a process is a kernel; short-lived ones of the server may have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "ipykernel_launcher" in process.cmdline()
    return False


def started(log: Path) -> str:
    """Wait for JupyterLab; return its address."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            # The address is printed a moment before anybody listens there.
            with contextlib.suppress(OSError), urllib.request.urlopen(found[0] + "api"):
                return found[0]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("ending", ["Ctrl-C", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_lab_ends_with_all_its_kernels(ending: str | signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    home = {f"JUPYTER_{what}_DIR": str(tmp_path / what) for what in ("RUNTIME", "CONFIG", "DATA")}
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=secret",
               "--ServerApp.disable_check_xsrf=True"]  # fmt: skip
    terminal, own_end = pty.openpty() if ending == "Ctrl-C" else (None, subprocess.DEVNULL)
    with log.open("wb") as output:
        lab = subprocess.Popen(
            [sys.executable, "-c", LAB, "lab", "--", *options],
            cwd=ROOT, stdin=own_end, stdout=output, stderr=output, start_new_session=True,
            env={**CHILD_ENVIRONMENT, **home},
        )  # fmt: skip
    tree: list[psutil.Process] = []
    try:
        request = urllib.request.Request(
            started(log) + "api/kernels", data=b"{}", headers={"Authorization": "token secret"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert answer.status == 201
        tree = psutil.Process(lab.pid).children(recursive=True)
        assert any(map(is_kernel, tree))
        if isinstance(ending, str):
            os.write(terminal, b"\x03")
        else:
            lab.send_signal(ending)
        number = signal.SIGINT if isinstance(ending, str) else ending
        assert lab.wait(PATIENCE_S) == 128 + number
        _, left = psutil.wait_procs(tree, timeout=0)
        assert left == []
        assert "Shut down this Jupyter server" not in log.read_text()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree += psutil.Process(lab.pid).children(recursive=True)
        for process in tree:
            if process.is_running():
                process.kill()
        lab.kill()
        lab.wait()
        if terminal is not None:
            os.close(terminal)
            os.close(own_end)
