"""Stress: the same engine asked again and again, with time, memory and pages watched meanwhile."""

from __future__ import annotations

from analysis.stress.climb import LEVELS, stress
from analysis.stress.result import Stress

__all__ = ["LEVELS", "Stress", "stress"]
