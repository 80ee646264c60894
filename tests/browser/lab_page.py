"""JupyterLab in a browser window, used through what a person sees: menus, dialogs, cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from support import ROOT

from analysis.shortfin.environments import kernel_name

if TYPE_CHECKING:
    from playwright.sync_api import FrameLocator, Locator, Page

DEADLINE_S = 120
NOTEBOOK_DEADLINE_S = 900
"""Of a whole notebook, on a machine that others use too."""
_AT_REST = """() => {
  const prompts = [...document.querySelectorAll(".jp-InputPrompt")];
  const kernel = document.querySelector(".jp-Notebook-ExecutionIndicator");
  return kernel?.dataset.status === "idle" && !prompts.some((one) => one.innerText.includes("*"));
}"""


class LabPage:
    """One window of JupyterLab at an address with its token."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self._address = page, address

    def open(self, notebook: Path | None = None) -> None:
        """Open the launcher, or a notebook of the checkout."""
        place = "" if notebook is None else "/tree/" + quote(str(notebook.relative_to(ROOT)))
        parts = urlsplit(self._address)
        self.page.goto(parts._replace(path=f"/lab{place}", query=f"{parts.query}&reset").geturl())
        self.page.wait_for_selector(".jp-LauncherCard" if notebook is None else ".jp-Cell")

    def menu(self, name: str, item: str) -> None:
        """Choose an item of a menu of the menu bar."""
        self.page.get_by_role("menuitem", name=name, exact=True).click()
        self.page.locator(".lm-Menu-item", has_text=item).first.click()

    def choose_kernel(self, name: str) -> None:
        """Choose the kernel of the open notebook in its dialog, and wait until it has started."""
        self.wait_for_kernel("")
        self.page.locator(".jp-Toolbar-kernelName").click()
        self.page.locator(".jp-Dialog select").select_option(label=name)
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait_for_kernel(name)

    def wait_for_kernel(self, name: str) -> None:
        """Wait until the status bar names this kernel as idle; cells run before are forgotten."""
        self.page.get_by_text(f"{name} | Idle").wait_for()

    def run_all(self, timeout_s: float = NOTEBOOK_DEADLINE_S) -> None:
        """Run all cells from the menu, and wait until the last one has run."""
        self.menu("Run", "Run All Cells")
        self.prompt("[*]").wait_for()
        self.wait(timeout_s)

    def run_cell(self) -> None:
        """Run the selected cell, and select the next one."""
        self.menu("Run", "Run Selected Cell")

    def wait(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until no cell runs or is to run."""
        self.page.wait_for_function(_AT_REST, timeout=timeout_s * 1000)

    def prompt(self, text: str) -> Locator:
        """The last prompt of an input with a text."""
        return self.page.locator(".jp-InputPrompt", has_text=text).last

    def output(self, text: str | re.Pattern[str]) -> Locator:
        """The outputs with a text."""
        return self.page.locator(".jp-OutputArea-output", has_text=text)

    def frame(self, title: str) -> FrameLocator:
        """The view whose title begins so."""
        return self.page.frame_locator(f'iframe[title^="{title}"]')

    def saved(self, notebook: Path) -> list[Any]:
        """Save the open notebook from the menu; return its code cells from the file."""
        before = notebook.read_bytes()
        self.menu("File", "Save Notebook")
        self.page.wait_for_function("!document.querySelector('.jp-mod-current.jp-mod-dirty')")
        for _ in range(10 * DEADLINE_S):
            if notebook.read_bytes() != before:
                break
            self.page.wait_for_timeout(100)
        cells = nbformat.read(notebook, as_version=4).cells
        return [cell for cell in cells if cell.cell_type == "code"]


def write_notebook(path: Path, release: str, *sources: str) -> Path:
    """Write a notebook with these cells, and with the kernel of a release."""
    kernel = {"name": kernel_name(release), "display_name": f"shortfin {release}"}
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def copy_with(notebook: Path, place: Path, parameters: Mapping[str, object]) -> Path:
    """Copy a notebook, with other values in its cell of parameters."""
    copied = json.loads(notebook.read_text())
    (cell,) = (c for c in copied["cells"] if "parameters" in c["metadata"].get("tags", []))
    cell["source"] = ["".join(cell["source"]), *(f"\n{k} = {v!r}" for k, v in parameters.items())]
    path = place / notebook.name
    path.write_text(json.dumps(copied))
    return path
