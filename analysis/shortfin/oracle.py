"""The reference decoder of a release: its interpreter and compilation target."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from analysis.model.oracle import Oracle
from analysis.shortfin import devices
from analysis.shortfin.environments import python_of


def oracle_of(
    release: str,
    *,
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (4,),
    device: str = "local-task",
    hip_target: str | None = None,
    from_positions: bool = False,
) -> Oracle:
    """Return the reference decoder of a release; it also compiles the model for the engine.

    `from_positions`: with the program whose prefills take start positions.

    Raises ReleaseError if the release has no environment, EngineError for an unavailable device.
    """
    python = python_of(release)
    _, target = devices.resolve(device, hip_target)
    directory = Path(model) if model else None
    return Oracle(release, python, directory, tuple(batch_sizes), (target,), from_positions)
