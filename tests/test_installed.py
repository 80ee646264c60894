"""The wheel, installed into an environment of its own, away from any checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from support import NEWEST, RELEASES, REPORTED, ROOT

from analysis.core.paths import cache_dir

SHARED = Path(sys.prefix)
TINY = """
from analysis import report
from analysis.jupyter import show
from matplotlib.figure import Figure
report.read_parameters(globals())
report.write_answer(run_dir, f"There are {clients}.")
show(Figure(figsize=(2, 1)), alt="An <empty> figure.")
"""


@dataclass(frozen=True)
class Installed:
    """An environment that the wheel was installed into, and a folder to work in."""

    wheel: Path
    prefix: Path
    home: Path

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in `home`, as a user without a checkout."""
        words = [str(word) for word in command]
        given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # Compiled models are taken from the checkout: they are equal, and take half a minute.
        given |= {"HOME": str(self.home), "CACHELAB_CACHE_DIR": str(cache_dir()), **environment}
        given |= {f"XDG_{name}_HOME": str(self.home / name) for name in ("DATA", "CONFIG", "CACHE")}
        words[0] = str(self.prefix / "bin" / words[0])
        return subprocess.run(
            words, cwd=self.home, env=given, capture_output=True, text=True, timeout=600
        )

    def cachelab(self, *arguments: object, **environment: str) -> tuple[int, str, str]:
        """Run the command line; return its exit status, stdout and stderr."""
        done = self.run("cachelab", *arguments, **environment)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the wheel and install it; return it and the prefix of its environment."""
    home = tmp_path_factory.mktemp("installed")
    uv, prefix = str(Path(sys.executable).with_name("uv")), home / "venv"
    for command in (
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home / "dist")],
        [uv, "venv", "--quiet", "--python", sys.executable, str(prefix)],
    ):
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)
    [wheel] = (home / "dist").glob("*.whl")
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python",
         str(prefix / "bin" / "python"), str(wheel)], check=True, timeout=300,
    )  # fmt: skip
    # What it depends on is that of this environment, which is not installed twice. Its path file
    # of the checkout is not read there.
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(prefix)}))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    templates = Path("share", "jupyter", "nbconvert")
    (prefix / templates).parent.mkdir(parents=True, exist_ok=True)
    (prefix / templates).symlink_to(SHARED / templates)
    (prefix / "bin" / "uv").symlink_to(uv)
    return wheel, prefix


@pytest.fixture
def installed(built: tuple[Path, Path], tmp_path: Path) -> Installed:
    """Return the installed package, with an empty folder to work in."""
    return Installed(*built, tmp_path)


def tiny(place: Path) -> Path:
    """Write a notebook with one figure, which needs no engine."""
    cells = [
        new_markdown_cell("# A small question"),
        new_code_cell(
            'run_dir: str = "."\nclients: list[int] = [1]', metadata={"tags": ["parameters"]}
        ),
        new_code_cell("%load_ext analysis.jupyter" + TINY),
    ]
    kernel = {"name": f"shortfin-{REPORTED}", "language": "python", "display_name": "shortfin"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), place)
    return place


def test_the_wheel_has_what_the_commands_need(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    expected = {f"environments/{release}.txt" for release in RELEASES}
    expected |= {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    for name in ("model", "programs"):
        expected |= {f"{name}/{path.name}" for path in (ROOT / "data" / name).iterdir()}
    assert {f"analysis/_data/{name}" for name in expected} <= names
    here = {path for path in (ROOT / "analysis").rglob("*") if path.is_file()}
    ours = {path.relative_to(ROOT).as_posix() for path in here if path.suffix != ".pyc"}
    assert ours <= names


def test_releases_are_listed_with_what_is_installed(installed: Installed) -> None:
    status, stdout, _ = installed.cachelab("releases", "list")
    listed = dict(line.split("  ", 1) for line in stdout.splitlines())
    assert status == 0
    assert listed[REPORTED] == str(installed.prefix / "bin" / "python")
    assert listed[NEWEST] == "not installed"


def test_notebooks_are_copied_and_nothing_is_overwritten(installed: Installed) -> None:
    status, stdout, _ = installed.cachelab("notebooks", "copy", "mine")
    names = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert (status, {Path(line).name for line in stdout.splitlines()}) == (0, names)
    first = installed.home / "mine" / "01_reproduce.ipynb"
    first.write_text("edited")
    (installed.home / "file").write_text("mine")
    for place in ("mine", "file", "file/in", "/proc/new"):
        status, stdout, stderr = installed.cachelab("notebooks", "copy", place)
        assert (status, stdout, len(stderr.splitlines())) == (1, "", 1)
        assert f"{place} {'is not empty' if place == 'mine' else 'cannot be written'}" in stderr
    assert first.read_text() == "edited"


def test_a_report_makes_the_kernel_that_it_needs(installed: Installed) -> None:
    kernel = installed.prefix / f"share/jupyter/kernels/shortfin-{REPORTED}/kernel.json"
    kernel.unlink(missing_ok=True)
    notebook = tiny(installed.home / "tiny.ipynb")
    given = ("--notebooks", notebook, "--parameter", "clients=4,8")
    status, _, stderr = installed.cachelab("report", *given)
    assert status == 0, stderr
    (absent,) = [line for line in stderr.splitlines() if "cachelab releases install" in line]
    assert NEWEST in absent
    assert json.loads(kernel.read_text())["argv"][0] == str(installed.prefix / "bin" / "python")
    page = (installed.home / "reports" / f"tiny-{REPORTED}.html").read_text()
    assert "There are [4, 8]." in page
    for release, sentence in (
        (NEWEST, f"cachelab releases install {NEWEST}"),
        ("3.0.0", "is not a known release"),
    ):
        status, _, stderr = installed.cachelab("report", *given, "--releases", release)
        assert (status, len(stderr.splitlines())) == (1, 1)
        assert sentence in stderr
    bad = ("report", "--notebooks", notebook, "--parameter", "clients=many")
    status, _, stderr = installed.cachelab(*bad, "--out", "other")
    assert (status, len(stderr.splitlines())) == (1, 1)
    assert "`clients` must be a list of whole numbers, not 'many'" in stderr
    assert not (installed.home / "other").exists()


def test_a_release_that_cannot_be_fetched_is_one_sentence(installed: Installed) -> None:
    nothing = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(installed.home / "empty")}
    status, stdout, stderr = installed.cachelab("releases", "install", NEWEST, **nothing)
    assert (status, stdout, len(stderr.splitlines())) == (1, "", 1)
    assert f"shortfin {NEWEST}" in stderr
    assert "network" in stderr
    assert len(stderr) < 1000
    assert f"{NEWEST}  not installed" in installed.cachelab("releases", "list")[1]
    data = installed.home / "file"
    data.write_text("in the way")
    (installed.home / "DATA").rename(installed.home / "before")
    (installed.home / "DATA").symlink_to(data)
    status, _, stderr = installed.cachelab("releases", "install", NEWEST)
    assert (status, len(stderr.splitlines())) == (1, 1)
    assert "cannot be used" in stderr


def test_papermill_by_hand_passes_lists_as_text(installed: Installed) -> None:
    installed.cachelab("releases", "install", REPORTED)
    notebook = tiny(installed.home / "tiny.ipynb")
    papermill = ("python", "-m", "papermill", notebook, "out.ipynb")
    done = installed.run(*papermill, "-p", "clients", "[4]")
    assert done.returncode == 0, done.stderr
    assert json.loads((installed.home / "answer.json").read_text())["answer"] == "There are [4]."
    done = installed.run(*papermill, "-p", "clients", "many")
    assert done.returncode != 0
    assert "The notebook's parameter `clients` must be a list of whole numbers" in done.stderr


def test_nbconvert_by_hand_keeps_alt_texts_and_needs_no_network(installed: Installed) -> None:
    installed.cachelab("releases", "install", REPORTED)
    notebook = tiny(installed.home / "tiny.ipynb")
    nbconvert = ("python", "-m", "nbconvert", "--execute", notebook, "--to")
    for form in ("html", "cachelab"):
        done = installed.run(*nbconvert, form)
        assert done.returncode == 0, done.stderr
        page = (installed.home / "tiny.html").read_text()
        assert page.count('alt="An &lt;empty&gt; figure."') == 1
        assert page.count("<img") == 1
    assert not re.search(r"<script|https?://|@import|url\(", page)
    assert page.count("A small question") == 2  # the tab's title and the page's


@pytest.mark.slow
def test_the_newest_release_runs_without_a_checkout(installed: Installed) -> None:
    """Needs the package index, or what `make setup` left in the cache of uv."""
    uv = Path(sys.executable).with_name("uv")
    cache = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout
    status, stdout, stderr = installed.cachelab(
        "releases", "install", REPORTED, NEWEST, UV_CACHE_DIR=cache.strip()
    )
    assert status == 0, stderr
    assert [line.split()[0] for line in stdout.splitlines()] == [REPORTED, NEWEST]
    options = ("--concurrency", "4", "--repeats", "1", "--workload", "reported", "--json")
    status, stdout, stderr = installed.cachelab(
        "sweep", "--releases", f"{REPORTED},{NEWEST}", *options
    )
    assert status == 0, stderr
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert {(row["release"], row["status"]) for row in rows} == {(REPORTED, "ok"), (NEWEST, "ok")}
    assert len(list((installed.home / "runs").iterdir())) == 1
    # In the environment of one release the other is found, too.
    [python] = (installed.home / "DATA").glob(f"cachelab/*/{NEWEST}/bin/python")
    source = "from analysis.shortfin.environments import present; print(*present())"
    done = subprocess.run(
        [python, "-c", source], capture_output=True, text=True, cwd=installed.home,
        env={"XDG_DATA_HOME": str(installed.home / "DATA")},
    )  # fmt: skip
    assert done.stdout.split() == [REPORTED, NEWEST], done.stderr
