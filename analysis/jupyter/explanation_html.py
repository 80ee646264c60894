"""An explanation as HTML without scripts."""

from __future__ import annotations

import base64

from analysis.core.templates import render
from analysis.diagnosis.explanation import Explanation


def explanation_html(
    explanation: Explanation, *, heading: str = "h3", png: bytes | None = None
) -> str:
    """Return what a notebook shows of an explanation.

    `heading` is the element of its title; `png` is its figure, shown after the first section.
    """
    return render(
        "analysis.jupyter",
        "explanation.html.j2",
        explanation=explanation,
        heading=heading,
        picture=base64.b64encode(png).decode() if png else "",
    )
