"""Figures as images with alt texts."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING, Any

from IPython.display import Image

from analysis.plots.style import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show(figure: Figure, alt: str) -> Image:
    """Return a figure as an image that a notebook displays and a page embeds.

    `alt` describes the figure in one sentence for readers who cannot see it.
    """
    width: Any = int(figure.get_figwidth() * 100)
    return Image(data=png_of(figure), width=width, alt=alt)  # type: ignore[no-untyped-call,unused-ignore]


def image_html(image: Image) -> str | None:
    """Return a PNG with its alt text as HTML: nbconvert's stock page drops it from a PNG.

    The PNG itself stays beside it, for what shows no HTML.
    """
    if image.format != "png" or image.data is None or not image.alt:
        return image._repr_html_()  # type: ignore[no-any-return,no-untyped-call,unused-ignore]
    width = f' width="{image.width}"' if image.width else ""
    data = b64encode(image.data).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(image.alt)}"{width}>'
