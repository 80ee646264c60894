"""The looks of published pages: contrast, headings, frames that scroll, and no network."""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from typing import Any

import pytest
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgb
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pygments.styles import get_style_by_name

from analysis.jupyter import html_of
from analysis.report import pages
from analysis.report.exporter import render
from analysis.snapshots.snapshot import CacheState, Snapshot

PICTURE = base64.b64encode(b"a picture").decode()
PAGE = pages.Page("A question", "01.ipynb", "9.9.9", "today", "1 s", "quick", answer="It is so.")
SCHEMES = ("light", "dark")


def colours(scheme: str) -> dict[str, str]:
    """Return the colours of `style.css` by name; the last rule is that of dark pages."""
    light, dark = re.findall(r"^:root \{([^}]*)\}", pages._css(), re.MULTILINE)
    rules = re.findall(r"--(\w+): (#\w+)", light + (dark if scheme == "dark" else ""))
    return dict(rules)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (WCAG 2), from 1 to 21."""
    lights = []
    for colour in (one, other):
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        )
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
    return max(lights) / min(lights)


def page() -> Any:
    snapshot = Snapshot(CacheState(8, (1, 2), {"a": (3,)}))
    image = {"image/png": PICTURE}
    cells = [
        new_markdown_cell("# A question\n\nWhy?\n\n## A part\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
        new_code_cell(
            "# a comment\nshow(figure)",
            outputs=[
                new_output(
                    "execute_result",
                    image,
                    metadata={"image/png": {"width": 960, "alt": "A <figure>."}},
                ),
                new_output("display_data", image),
                new_output("display_data", {"text/html": html_of(snapshot)}),
                new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>"}),
            ],
        ),
        new_markdown_cell("## Answer"),
    ]
    return BeautifulSoup(render(new_notebook(cells=cells), PAGE), "html.parser")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_contrast_in_both_colour_schemes(scheme: str) -> None:
    own = colours(scheme)
    assert contrast(own["ink"], own["paper"]) > 12
    for name in ("ink", "soft", "link", "bad", "good"):
        for behind in ("paper", "wash"):
            assert contrast(own[name], own[behind]) >= 4.5, (name, behind)
    assert contrast(own["ink"], own["mark"]) >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_code_and_its_comments_have_contrast(scheme: str) -> None:
    own = colours(scheme)
    for token, style in get_style_by_name(pages._CODE_STYLES[scheme]):
        if style["color"]:
            assert contrast(f"#{style['color']}", own["wash"]) >= 4.5, token


def test_each_colour_scheme_has_rules_for_code() -> None:
    css = page().style.get_text()
    for scheme in SCHEMES:
        [rules] = re.findall(
            rf"@media \(prefers-color-scheme: {scheme}\) {{\n(pre.*?)\n}}", css, re.DOTALL
        )
        assert ".highlight .c1 {" in rules
        assert rules.count("{") == rules.count("}")


def test_headings_are_in_order_and_no_two_are_the_same() -> None:
    headings = page().find_all(re.compile(r"h[1-6]"))
    names = [re.sub("¶", "", heading.get_text()) for heading in headings]
    assert names == ["A question", "Short answer", "A part", "Answer"]
    levels = [int(heading.name[1]) for heading in headings]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_figure_scrolls_in_a_frame_that_the_keyboard_reaches() -> None:
    soup = page()
    first, second = soup.find_all("img")
    assert (first["alt"], first["width"], first["style"]) == (
        "A <figure>.", "960", "--width: 960px",
    )  # fmt: skip
    assert (second["alt"], second.get("style")) == ("", None)
    index = BeautifulSoup(pages.render_index([], b"a picture"), "html.parser")
    css = pages._css()
    for image in (first, second, index.find("img")):
        frame = image.find_parent(class_="figure")
        assert frame["tabindex"] == "0"
    for frame in (".figure", ".output_html, .rendered_html, details.parameters"):
        assert re.search(rf"^{re.escape(frame)} {{[^}}]*overflow-x: auto", css, re.MULTILINE)
    for wide in soup.find_all(["table", "svg"]):
        assert wide.find_parent(class_=["output_html", "rendered_html"]) or not wide.get("role")


def test_nothing_on_a_page_is_wider_than_a_phone() -> None:
    """What has a least width in the style stands in a frame that scrolls."""
    wide = re.findall(r"^([^{@\n]*)\{[^}]*(?:min-width|[^-]width): [\d.]{2,}(?:rem|px)",
                      pages._css(), re.MULTILINE)  # fmt: skip
    assert [selector.strip() for selector in wide] == ["table.answers"]
    assert "width=device-width" in str(page().find("meta", attrs={"name": "viewport"}))


def test_a_page_asks_for_nothing_from_the_network() -> None:
    index = pages.render_index([], b"a picture")
    for text in (str(page()), index):
        links = re.findall(r"""(?:src|href|srcset|data|poster)\s*=\s*["']?([^"'\s>]+)""", text)
        assert all(re.match(r"data:image/png;base64,|#|index\.html$", link) for link in links)
        assert not re.search(r"@import|url\(|<script|<link|<iframe", text)
