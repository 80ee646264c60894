"""JupyterLab as a user opens it: a kernel for each release, and notebooks that run to their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab_page import LabPage, copy_with, write_notebook
from support import NEWEST, RELEASES, REPORTED, ROOT

FEW: dict[str, dict[str, Any]] = {
    "00_debug_one_failure": {},
    "01_reproduce": {"repeats": 2, "concurrency": [1, 4, 8]},
    "02_cache_snapshots": {"rounds": 10},
    "03_evictions": {"repeats": 2, "pages": [64, 40], "rounds": [1]},
    "04_first_wrong_step": {"repeats": 2, "concurrency": [2, 4]},
}
"""Parameters with which a notebook takes about half a minute."""


def test_the_launcher_has_a_kernel_for_each_release(lab: LabPage) -> None:
    lab.open()
    cards = lab.page.locator('.jp-LauncherCard[data-category="Notebook"]')
    names = cards.evaluate_all("cards => cards.map((card) => card.title)")
    assert {f"shortfin {release}" for release in (REPORTED, NEWEST)} <= set(names)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", FEW)
def test_a_notebook_runs_from_the_menu_to_its_end(
    name: str, release: str, lab: LabPage, work: Path
) -> None:
    original = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = copy_with(original, work, {**FEW[name], "run_dir": str(work / "run")})
    lab.open(notebook)
    lab.choose_kernel(f"shortfin {release}")
    lab.run_all()
    cells = lab.saved(notebook)
    failed = [o["evalue"] for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert failed == []
    assert all(cell.execution_count for cell in cells)
    assert lab.page.locator(".jp-Toolbar-kernelName").inner_text() == f"shortfin {release}"
    assert (work / "run" / "answer.json").is_file()


INTERRUPTED = [
    """
from analysis import Engine, EngineConfig
from analysis.workloads.named import make_workload
engine = Engine(EngineConfig(prefix_sharing="none"))
engine.start()
workload = make_workload("mixed", count=2000, seed=1)
print("has started")
""",
    """
print("runs", flush=True)
engine.run(workload, concurrency=2)
""",
    "print('goes on:', engine.generate('1 2 3 ', 3).outcome)",
    "engine.close(); print('has closed')",
]


@pytest.mark.parametrize("release", RELEASES)
def test_a_workload_is_interrupted_and_the_session_goes_on(
    release: str, lab: LabPage, work: Path
) -> None:
    notebook = write_notebook(work / "interrupted.ipynb", release, *INTERRUPTED)
    lab.open(notebook)
    lab.wait_for_kernel(f"shortfin {release}")
    lab.run_cell()
    lab.output("has started").wait_for()
    lab.run_cell()
    lab.output("runs").wait_for()
    lab.page.wait_for_timeout(2000)  # some requests are under way
    lab.menu("Kernel", "Interrupt Kernel")
    lab.output("KeyboardInterrupt").first.wait_for()
    lab.run_cell()
    lab.output("goes on: ok").wait_for()
    lab.run_cell()
    lab.output("has closed").wait_for()
    cells = lab.saved(notebook)[:4]
    kinds = [[o.output_type for o in cell.outputs] for cell in cells]
    assert kinds == [["stream"], ["stream", "error"], ["stream"], ["stream"]]
    assert "engine/clients.py" in "".join(cells[1].outputs[1].traceback)
