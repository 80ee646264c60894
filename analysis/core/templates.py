"""Renders sentences and HTML from jinja2 templates in the folder `templates` of a package."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from analysis.core import wording

if TYPE_CHECKING:
    from jinja2 import Environment

_FILTERS = (
    "counted", "listed", "numbered", "percent", "short_percent", "p_value", "capitalised",
    "one_line", "probability",
)  # fmt: skip


def render(package: str, template: str, /, **values: Any) -> str:
    """Render a template of a package.

    Templates named `*.html.j2` escape every value. All templates have the functions of `wording` as
    filters. Raises jinja2.UndefinedError for a missing value.
    """
    return _environment(package).get_template(template).render(**values)


def lines(package: str, template: str, /, **values: Any) -> tuple[str, ...]:
    """Render a template, and return its lines without empty ones."""
    text = render(package, template, **values)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def paragraph(package: str, template: str, macro: str, /, *values: Any) -> str:
    """Render a macro of a template, and return it as one line of text."""
    module: Any = _environment(package).get_template(template).module
    return " ".join(str(getattr(module, macro)(*values)).split())


@lru_cache
def _environment(package: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(wording, name) for name in _FILTERS})
    return environment
