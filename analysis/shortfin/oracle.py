"""The reference decoder of a release: which interpreter and compilation target it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from analysis.model.oracle import Answers, Oracle
from analysis.shortfin import devices
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.environments import python_of
from analysis.workloads.workload import Request


def oracle_of(
    release: str,
    *,
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (4,),
    device: str = "local-task",
    hip_target: str | None = None,
) -> Oracle:
    """Return the reference decoder of a release.

    Raises ReleaseError if the release has no environment here, EngineError for a device that cannot
    be had.
    """
    python = python_of(release)
    _, target = devices.resolve(device, hip_target)
    directory = Path(model) if model else None
    return Oracle(release, python, directory, tuple(batch_sizes), (target,))


def reference_answers(
    requests: Iterable[Request],
    *,
    release: str,
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (4,),
    device: str = "local-task",
    hip_target: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Return the reference decoder's tokens for every (prompt, max_new_tokens) of `requests`.

    `on_progress` is called with how many are known and how many there are. Also compiles the model
    for the engine's device. Raises ModelError, ReleaseError or EngineError.
    """
    oracle = oracle_of(
        release, model=model, batch_sizes=batch_sizes, device=device, hip_target=hip_target
    )
    return oracle.generate(requests, on_progress)


def compile_for(
    release: str,
    *,
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (4,),
    device: str = "auto",
    hip_target: str | None = None,
) -> None:
    """Compile the model for a release in its own environment, unless that is in the cache.

    Raises EngineError for settings with which no engine starts, ModelError if the compiler fails,
    ReleaseError if the release has no environment here.
    """
    # Refuses what no engine would take, also what the device here makes no use of.
    EngineConfig(model=Path(model) if model else None, batch_sizes=tuple(batch_sizes),
                 device=device, hip_target=hip_target)  # fmt: skip
    oracle_of(
        release, model=model, batch_sizes=batch_sizes, device=device, hip_target=hip_target
    ).compile()
