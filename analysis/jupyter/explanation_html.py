"""An explanation as Jupyter shows it."""

from __future__ import annotations

from analysis.diagnosis.explanation import Explanation
from analysis.diagnosis.text import as_html


def explanation_html(explanation: Explanation) -> str:
    """Return an explanation as HTML without scripts."""
    return as_html(explanation)
