"""An explanation as HTML without scripts."""

from __future__ import annotations

import base64

from analysis.core.templates import render
from analysis.diagnosis.explanation import Explanation


def explanation_html(explanation: Explanation) -> str:
    """Return what a notebook shows of an explanation."""
    return render("analysis.jupyter", "explanation.html.j2", explanation=explanation, picture="")


def explanation_page(explanation: Explanation, png: bytes) -> str:
    """Return a page that opens offline, with the figure of an explanation in it."""
    picture = base64.b64encode(png).decode()
    return render(
        "analysis.jupyter", "explanation_page.html.j2", explanation=explanation, picture=picture
    )
