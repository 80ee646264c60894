"""What a run was made with: versions, git commit, machine, command and seed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "cachelab",
    "shortfin",
    "iree-base-compiler",
    "iree-base-runtime",
    "numpy",
    "pandas",
    "pyarrow",
    "tokenizers",
)


def new_manifest(command: str | Sequence[str], seed: int | None, **extra: Any) -> dict[str, Any]:
    """Return the manifest of a run that starts now.

    `command` is what the user typed; `extra` is stored beside it, above all `plan`, by which a run
    is recognised when it is resumed. Packages that are not installed here are None.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command if isinstance(command, str) else " ".join(command),
        "seed": seed,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": git_state(Path(__file__).resolve().parents[2]),
        "machine": machine(),
        **extra,
    }


def machine() -> dict[str, Any]:
    """Return the processor's name, the cores this process may use, memory in bytes, the system."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    try:
        memory: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout and whether files differ from it; None outside of git."""
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changed = bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(directory: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *words],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
