"""One package for each dialect of the prefix cache: probe, request driver and treatments."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from analysis.shortfin.releases import row_of


def part_of(release: str, part: str) -> Any:
    """Return a module, such as `probe`, of a release's cache dialect."""
    return import_module(f"{__name__}.{row_of(release).cache}.{part}")
