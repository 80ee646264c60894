"""One package a dialect of the prefix cache: its probe, request driver and own treatments."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from analysis.shortfin.releases import row_of


def part_of(release: str, part: str) -> Any:
    """Return a module, such as `probe`, of the dialect that a release's cache speaks."""
    return import_module(f"{__name__}.{row_of(release).cache}.{part}")
