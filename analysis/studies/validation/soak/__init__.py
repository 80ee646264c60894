"""Stress: the same engine asked again and again, with time, memory and pages watched meanwhile."""

from __future__ import annotations

from analysis.studies.validation.soak.climb import LEVELS, stress
from analysis.studies.validation.soak.result import Stress

__all__ = ["LEVELS", "Stress", "stress"]
