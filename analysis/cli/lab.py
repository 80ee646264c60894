"""`cachelab lab`: JupyterLab with a kernel for each release."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

_ENDS_S, _TICK_S = 20.0, 0.2


def lab(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="behind --, go to JupyterLab: -- --allow-root")
    ] = None,
) -> None:
    """Start JupyterLab on 127.0.0.1 with its token on, and a kernel for each release.

    It opens the checkout, or the current directory if the package was installed.


    For example:

    cachelab lab

    cachelab lab -- --no-browser --port 8899
    """
    raise typer.Exit(_start(arguments or ()))


def _start(arguments: Sequence[str]) -> int:
    """Run JupyterLab on this machine's own address with its token on; return its exit status.

    Ctrl-C, SIGTERM and SIGHUP end it and its kernels in order, and the status is 128 and the
    signal's number then. A second signal, or `_ENDS_S` seconds, end it at once.
    """
    from analysis.core import children
    from analysis.core.paths import repo_root
    from analysis.shortfin.environments import kernel_of, present

    directory = repo_root() or Path.cwd()
    for release in present():
        kernel_of(release)
    command = children.until_we_end(sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1",
                                    f"--ServerApp.root_dir={directory}", *arguments)  # fmt: skip
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
            signal.signal(number, lambda number, _: caught.append(number))
    # In a session of its own: the terminal's Ctrl-C comes here only, and Jupyter asks nothing.
    lab = children.start(command, cwd=directory)
    while not caught:
        with suppress(subprocess.TimeoutExpired):
            return lab.wait(_TICK_S)
    children.end_tree(lab, _ENDS_S, hurry=lambda: len(caught) > 1)
    return 128 + caught[0]
