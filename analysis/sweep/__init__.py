"""A grid of trials, each a fresh engine; progress, resume, and a row for whatever happens.

Names are loaded when first used, so that a trial's child process does not load the parent's side.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.sweep.plan import Plan, PlanError, Trial
    from analysis.sweep.runner import run_sweep

__all__ = ["Plan", "PlanError", "Trial", "run_sweep"]

_HOMES = {"Trial": "plan", "Plan": "plan", "PlanError": "plan", "run_sweep": "runner"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
