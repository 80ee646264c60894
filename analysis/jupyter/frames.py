"""Views that are pages of their own: they need no kernel and no network.

A view stands in an `<iframe srcdoc>`, in a notebook as well as in a report or a saved page. Its
data is packed into it, and its script reads nothing else.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from dataclasses import dataclass
from typing import Any

from analysis.core.templates import render


@dataclass(frozen=True)
class FramedPage:
    """A view: a notebook shows `markup`; `page` is the whole page by itself."""

    title: str
    page: str
    height: int
    """Of the frame, in pixels."""

    @property
    def markup(self) -> str:
        """An `<iframe>` with the page."""
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts"'
            f' title="{html.escape(self.title)}" width="100%" height="{self.height}"'
            ' style="border: 1px solid #888"></iframe>'
        )


def framed(template: str, title: str, data: Any, height: int, **values: Any) -> FramedPage:
    """Return the view of a template that extends `frame.html.j2`; its script gets `data`."""
    packed = gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)
    payload = base64.b64encode(packed).decode()
    page = render(__package__, template, title=title, payload=payload, **values)
    return FramedPage(title, page, height)
