"""An nbconvert exporter of pages that need no network: `jupyter nbconvert --to cachelab`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

from nbconvert import HTMLExporter
from traitlets import Bool, default
from traitlets.config import Config

from analysis.report import pages
from analysis.report.notebooks import title_of

# Widgets and scripts are dead in a page, so their outputs fall back to what else they offer; a
# figure's PNG has a frame of its own, which its HTML has not.
_SHOWN = ["image/png", "text/html", "text/markdown", "image/svg+xml", "image/jpeg", "text/plain"]


class PageExporter(HTMLExporter):  # type: ignore[misc,unused-ignore]
    """Export a notebook as one page: code folded away, images and styles inside, no scripts.

    `resources["page"]` is the `pages.Page` of a report. Without one the head of the page has only
    the title.
    """

    export_from_notebook = "Page without network"
    exclude_input_prompt = Bool(True).tag(config=True)
    exclude_output_prompt = Bool(True).tag(config=True)
    embed_images = Bool(True).tag(config=True)

    @property
    def default_config(self) -> Any:
        """The order of preference among the formats of an output."""
        config = super().default_config.copy()
        config.merge(Config({"NbConvertBase": {"display_data_priority": _SHOWN}}))
        return config

    @default("template_name")
    def _template_name_default(self) -> str:
        return "cachelab"

    @default("extra_template_basedirs")
    def _extra_template_basedirs_default(self) -> list[str]:
        return [str(pages.TEMPLATES)]

    def from_notebook_node(
        self, nb: Any, resources: dict[str, Any] | None = None, **kw: Any
    ) -> tuple[str, dict[str, Any]]:
        """Return a notebook as a page, and nbconvert's resources."""
        resources = dict(resources or {})
        name = resources.get("metadata", {}).get("name", "notebook")
        page = resources.get("page") or pages.Page(title=title_of(nb) or name)
        resources["page"] = {**asdict(page), "css": pages.page_css()}
        converted: tuple[str, dict[str, Any]] = super().from_notebook_node(
            _untitled(nb), resources, **kw
        )
        return converted


def render(notebook: Any, page: pages.Page) -> str:
    """Return an executed notebook as a page with this head."""
    body, _ = PageExporter().from_notebook_node(notebook, resources={"page": page})
    return body


def _untitled(notebook: Any) -> Any:
    """Return a notebook without its title, which the page's head shows already."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            cell.source = cell.source.partition("\n")[2].strip()
            break
    return copy
