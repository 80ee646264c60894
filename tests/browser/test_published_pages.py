"""Published pages on a desk and on a phone, light and dark: offline, no wider than the window,
printable, and accessible by the rules of axe-core.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab_page import DEADLINE_S
from support import REPORTED, ROOT

from analysis.jupyter import browse, replay
from analysis.jupyter.frames import FramedPage
from analysis.runs.store import Run, load_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RECORDED = ROOT / "data" / "recorded"
(SMALL,) = (RECORDED / "04_first_wrong_step-3.1.0").glob("small-*")
PAGES = ["index", "explanation", *sorted(path.name for path in RECORDED.iterdir())]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OF_A_PAGE = ["page-has-heading-one"]
"""A view is a part of a page, which has the heading."""
LOOKS = [(1400, "light"), (400, "light"), (400, "dark"), (1400, "dark")]
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WITHOUT_TEXT = """[...document.querySelectorAll("img, svg:not([aria-hidden])")]
  .filter((image) => !(image.getAttribute("alt") ?? image.getAttribute("aria-label")))
  .map((image) => image.outerHTML.slice(0, 200))"""


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    context.set_default_timeout(DEADLINE_S * 1000)
    yield context.new_page()
    context.close()


def asked_elsewhere(page: Page, file: Path) -> list[str]:
    """Open a page with all that it folds away; return what it asked for beside its own file."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.evaluate(OPEN_ALL)
    for frame in page.frames[1:]:
        frame.locator("body", has_text=re.compile("event|requests")).wait_for()
    return [url for url in asked if not url.startswith((file.as_uri(), "data:", "about:srcdoc"))]


def faults(page: Page, shots: Path, name: str, without: Collection[str] = ()) -> list[str]:
    """Return what is wrong with a page in each of its looks, and keep a picture of each."""
    from axe_playwright_python.sync_playwright import Axe

    found = [f"no text: {image}" for image in page.evaluate(WITHOUT_TEXT)]
    for width, scheme in LOOKS:
        look = f"{width}-{scheme}"
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=shots / f"{name}-{look}.png", full_page=True)
        if over := page.evaluate(OVERFLOW):
            found.append(f"{look}: {over} pixels too wide")
        # Only colours are other in the dark.
        rules = RULES if scheme == "light" else ["color-contrast"]
        kind = "tag" if scheme == "light" else "rule"
        options = {"runOnly": {"type": kind, "values": rules}, "resultTypes": ["violations"]}
        for one in Axe().run(page, options=options).response["violations"]:
            if one["id"] not in without:
                found += [f"{look}: {one['id']}: {n['html'][:200]}" for n in one["nodes"]]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_offline_narrow_and_accessible(
    name: str, page: Page, report: Path, shots: Path
) -> None:
    assert asked_elsewhere(page, report / f"{name}.html") == []
    assert faults(page, shots, name) == []


@pytest.mark.parametrize("view", [replay, browse], ids=["replay", "browse"])
def test_a_view_is_offline_narrow_and_accessible(
    view: Callable[[Run], FramedPage], page: Page, shots: Path, tmp_path: Path
) -> None:
    file = tmp_path / "view.html"
    file.write_text(view(load_run(SMALL)).page)
    assert asked_elsewhere(page, file) == []
    if view is browse:
        page.locator("#list tbody button").first.click()
    page.locator("b", has_text="seq-len-mismatch").first.wait_for()
    assert faults(page, shots, view.__name__, OF_A_PAGE) == []


def test_a_page_is_printed_with_its_text(page: Page, report: Path, shots: Path) -> None:
    from pypdf import PdfReader

    page.goto((report / f"04_first_wrong_step-{REPORTED}.html").as_uri())
    titles = page.locator("h1, h2").all_text_contents()
    page.pdf(path=shots / "printed.pdf", format="A4")
    sheets = PdfReader(shots / "printed.pdf").pages
    assert len(sheets) > 1
    assert sum(len(sheet.images) for sheet in sheets) > 1
    text = _letters("".join(sheet.extract_text() for sheet in sheets))
    assert [title for title in titles if _letters(title) not in text] == []


def _letters(text: str) -> str:
    """Return a text without spaces and with its ligatures apart."""
    return "".join(unicodedata.normalize("NFKC", text).replace("¶", "").split()).lower()
