"""Explains why a request failed: `explain(run, request_id)`."""

from __future__ import annotations

from analysis.diagnosis.build import explain
from analysis.diagnosis.explanation import Explanation

__all__ = ["Explanation", "explain"]
