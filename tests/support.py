"""What several rooms' tests share, beside the fixtures in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RELEASES = ("3.1.0", "3.9.0")


@dataclass(frozen=True)
class Child:
    """A child process that ended: `said` is the JSON that it gave to `say`."""

    said: Any
    returncode: int
    stdout: str
    stderr: str


ChildRunner = Callable[..., Child]
