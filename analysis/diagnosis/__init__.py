"""Why a request failed, in one call: `explain(run, request_id)`."""

from __future__ import annotations

from analysis.diagnosis.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
