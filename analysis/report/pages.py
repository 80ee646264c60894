"""Pages that need no network: their styles, the index, an explanation; a notebook's head."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.core.templates import render as render_template

if TYPE_CHECKING:
    from analysis.diagnosis.explanation import Explanation

TEMPLATES = Path(__file__).parent / "templates"
_CODE_STYLES = {"light": "xcode", "dark": "lightbulb"}
"""Pygments styles by colour scheme; every colour has a contrast of 4.5 or more on its page."""


@dataclass(frozen=True)
class Notice:
    """One sentence above the page; `kind` is "bad" or "note", `link` goes to a file or place."""

    kind: str
    text: str
    link: str = ""
    link_text: str = ""


@dataclass(frozen=True)
class Page:
    """The head of a page; what is empty is left out."""

    title: str
    notebook: str = ""
    release: str = ""
    date: str = ""
    took: str = ""
    mode: str = ""
    answer: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    notices: Sequence[Notice] = ()
    failed: bool = False


def render_index(entries: Sequence[Mapping[str, Any]], chart: bytes | None = None) -> str:
    """Return the index: one row a page, with title, question, release, answer, date and status.

    `chart` is a PNG that compares the pages' runs, shown above the table.
    """
    picture = base64.b64encode(chart).decode() if chart else None
    return render_template(
        "analysis.report", "index_page.html.j2", pages=entries, css=_css(), chart=picture
    )


def render_explanation(explanation: Explanation, png: bytes) -> str:
    """Return an explanation with its figure, a PNG, as a page."""
    from analysis.jupyter.explanation_html import explanation_html  # needs IPython

    body = explanation_html(explanation, heading="h1", png=png)
    return render_template(
        "analysis.report",
        "explanation_page.html.j2",
        title=explanation.title,
        body=body,
        css=_css(),
    )


def duration(seconds: float) -> str:
    """Return a time for people: "48 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def page_css() -> str:
    """Return the styles of a page with code."""
    return f"{_css()}\n{_code_css()}"


def _code_css() -> str:
    """Return the colours of code, on the background that `style.css` gives it."""
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped,unused-ignore]

    rules = []
    for scheme, style in _CODE_STYLES.items():
        colours = HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight")
        rules.append(f"@media (prefers-color-scheme: {scheme}) {{\n{colours}\n}}")
    return "\n".join(rules)


def _css() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")
