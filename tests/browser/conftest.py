"""Chromium, JupyterLab as `cachelab lab` starts it, and a report, for the tests of this directory.

Playwright is imported where it is used: `make test` collects these tests without it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab_page import DEADLINE_S, LabPage
from support import CHILD_ENVIRONMENT, RELEASES, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OUT = Path(os.environ.get("CACHELAB_BROWSER_OUT") or ROOT / "data" / "reports" / "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine, headless."""
    program = os.environ.get("CACHELAB_CHROMIUM")
    if not program:
        pytest.fail("These tests need Chromium and Playwright: run them with `make test-browser`.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shots() -> Path:
    """The directory of screenshots, which stay there to be looked at."""
    place = OUT / "screenshots"
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture(scope="session")
def lab_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab with its token, with settings of its own."""
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex()
    places = {f"JUPYTER_{what}_DIR": str(home / what) for what in ("RUNTIME", "CONFIG", "DATA")}
    options = ["--no-browser", "--allow-root", "--port=0",
               f"--IdentityProvider.token={token}", f"--LabApp.workspaces_dir={home}/w",
               f"--LabApp.user_settings_dir={home}/s"]  # fmt: skip
    log = home / "log"
    with log.open("wb") as output:
        lab = subprocess.Popen(
            [str(Path(sys.executable).with_name("cachelab")), "lab", "--", *options],
            cwd=ROOT, stdout=output, stderr=output, env={**CHILD_ENVIRONMENT, **places},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            assert lab.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"{found[0]}lab?token={token}"
    finally:
        lab.terminate()
        lab.wait(DEADLINE_S)


@pytest.fixture
def lab(
    chromium: Browser, lab_address: str, shots: Path, request: pytest.FixtureRequest
) -> Iterator[LabPage]:
    """JupyterLab in a window of its own; a picture of its end is kept, no kernel is."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(DEADLINE_S * 1000)
    page = context.new_page()
    try:
        yield LabPage(page, lab_address)
    finally:
        page.screenshot(path=shots / f"{request.node.name}.png")
        context.close()
        _end_kernels(*lab_address.split("lab?"))


def _end_kernels(address: str, token: str) -> None:
    with urllib.request.urlopen(f"{address}api/kernels?{token}") as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        end = urllib.request.Request(
            f"{address}api/kernels/{kernel['id']}?{token}", method="DELETE"
        )
        with urllib.request.urlopen(end, timeout=DEADLINE_S) as answer:
            assert answer.status == 204


@pytest.fixture
def work() -> Iterator[Path]:
    """A new directory below the one that JupyterLab opens; git ignores it."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=OUT) as place:
        yield Path(place)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of all shipped runs and of an explanation, made without an engine."""
    place = tmp_path_factory.mktemp("report")
    cachelab = str(Path(sys.executable).with_name("cachelab"))
    recorded = ROOT / "data" / "recorded"
    (run,) = (recorded / "04_first_wrong_step-3.1.0").glob("small-*")
    for command in (
        ["report", "--notebooks", "all", "--releases", ",".join(RELEASES),
         "--recorded", str(recorded), "--out", str(place)],
        ["explain", str(run), "--no-reference", "--out", str(place)],
    ):  # fmt: skip
        done = subprocess.run([cachelab, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return place
