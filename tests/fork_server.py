"""Runs Python source in forks of itself, so that what all tests import is imported once.

It reads a JSON line per request: source, arguments, and the files for stdout and stderr. It answers
with a line for the fork's process id, and one for its exit status when it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from types import ModuleType
from typing import NoReturn

from analysis.shortfin.service import installed_service

PRELOADED = (
    "analysis.engine.clients", "analysis.recording", "analysis.sanitizer", "analysis.treatments",
    "analysis.workloads.workload", "pandas",
)  # fmt: skip


def run(source: str, arguments: list[str], stdout: str, stderr: str) -> NoReturn:
    """Do in this process what `python -c source arguments` would."""
    for number, name in enumerate((os.devnull, stdout, stderr)):
        file = os.open(name, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    sys.argv, sys.path[0] = ["-c", *arguments], ""
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(source, "<string>", "exec"), vars(main))
    sys.exit()  # as any interpreter ends, with whatever threads and handlers are left


def serve() -> None:
    """Fork for every request until stdin ends."""
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            run(**json.loads(line))
        os.write(1, b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    installed_service()  # imports shortfin's application
    serve()
