"""Sentences from jinja2 templates: a file of macros beside the module that fills them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.core import wording

FILTERS = (
    wording.capitalised, wording.counted, wording.listed, wording.numbered, wording.p_value,
    wording.percent, wording.short_percent,
)  # fmt: skip


def paragraph(file: Path, macro: str, *values: Any) -> str:
    """Return what a macro of a template file makes of `values`, with its line breaks as spaces."""
    return " ".join(str(getattr(_macros(file), macro)(*values)).split())


@cache
def _macros(file: Path) -> Any:
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  (text and Markdown; pages of HTML have templates of their own)
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment.get_template(file.name).module
