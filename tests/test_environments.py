"""pyproject.toml is the only list of dependencies; the others refer to it or are made from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from analysis.core.errors import ReleaseError
from analysis.shortfin import environments as releases
from analysis.shortfin.releases import KNOWN, installed_release, reported

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "environments").glob("[0-9]*.txt"))
ENGINE = ("shortfin", "iree-base-compiler", "iree-base-runtime")


def _locked(path: Path) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.M):
        versions.setdefault(name, []).append(version)
    return versions


def test_conda_installs_the_project_and_lists_nothing_of_its_own() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    assert python == "python " + PROJECT["requires-python"]
    assert pip == "pip"
    assert rest == {"pip": ["--editable ."]}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_holds_every_dependency_at_an_allowed_version(lock: Path) -> None:
    locked = _locked(lock)
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        if lock.stem != reported():
            if requirement.name in releases._ONLY_IN_DEFAULT:
                continue
            if requirement.name in ENGINE:
                assert locked[requirement.name] == [lock.stem]
                continue
        assert all(requirement.specifier.contains(v) for v in locked[requirement.name]), text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index" not in text
    pins = re.findall(r"^[\w.-]+==", text, re.M)
    assert len(pins) > 50
    assert len(re.findall(r"^[\w.-]+==[^\n]*\\\n    --hash=sha256:", text, re.M)) == len(pins)


def test_this_environment_is_what_its_lock_says() -> None:
    release = installed_release()
    locked = _locked(ROOT / "environments" / f"{release}.txt")
    for text in PROJECT["dependencies"]:
        name = Requirement(text).name
        assert metadata.version(name) in locked[name]


def test_every_known_release_has_a_sentence_or_an_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert [row.release for row in releases.status()] == list(KNOWN)
    with pytest.raises(ReleaseError, match=r"3\.10\.0.*3\.1\.0, 3\.2\.0"):
        releases.python_of("3.10.0")
    monkeypatch.setattr(releases, "environments_dir", lambda: tmp_path)
    missing = next(row.release for row in releases.status() if row.python is None)
    with pytest.raises(ReleaseError, match=f"cachelab releases install {missing}"):
        releases.python_of(missing)


def test_kernels_lie_in_the_projects_own_prefix() -> None:
    for release in releases.present():
        python = releases.python_of(release)
        kernel = Path(sys.prefix, "share/jupyter/kernels", releases.kernel_name(release))
        assert str(python) in (kernel / "kernel.json").read_text()


def test_elsewhere_than_on_x86_64_linux_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(ReleaseError, match="x86-64 Linux only"):
        releases.check_platform()


def test_reading_statistics_and_figures_need_no_engine() -> None:
    source = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("shortfin", "_shortfin", "shortfin_apps", "iree", "torch"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import analysis, analysis.runs.store, analysis.stats.rates, analysis.plots
import analysis.workloads.workload
import analysis.sweep, analysis.report, analysis.cli, analysis.model
analysis.load_run
"""
    subprocess.run([sys.executable, "-c", source], check=True, cwd=ROOT, timeout=60)


def test_removing_an_environment_takes_its_kernel_and_nothing_else(tmp_path, monkeypatch) -> None:
    home, kernel = tmp_path / "venvs", tmp_path / "kernels" / "shortfin-3.8.0"
    monkeypatch.setattr(releases, "environments_dir", lambda: home)
    places = (kernel, tmp_path / "none")
    monkeypatch.setattr(releases, "_kernel_places", lambda name: places)
    for directory in (home / "3.8.0", home / "3.9.0", kernel):
        directory.mkdir(parents=True)
        (directory / "file").touch()
    spec = {"argv": [str(home / "3.8.0" / "bin" / "python")]}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    others = tmp_path / "none"
    others.mkdir()
    (others / "kernel.json").write_text(json.dumps({"argv": ["/elsewhere/bin/python"]}))
    (home / ".ready-3.8.0").touch()
    assert releases.remove("3.8.0") == home / "3.8.0"
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"venvs/3.9.0/file", "venvs/.3.8.0.lock", "none/kernel.json"}
    for release, words in (("3.8.0", "nothing was removed"), (reported(), "is not removed")):
        with pytest.raises(ReleaseError, match=words):
            releases.remove(release)


def test_a_probed_release_has_the_row_of_another() -> None:
    code = "from analysis.shortfin.releases import *; print(KNOWN, row_of('3.10.0').cache)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "CACHELAB_PROBE": "3.10.0=3.9.0"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{(*KNOWN, '3.10.0')} records"
    assert releases._nearest("3.10.0") == KNOWN[-1]
    assert releases._nearest("3.5.0") == "3.4.0"
    assert releases._nearest("3.0.0") == KNOWN[0]
    older = subprocess.run(
        [sys.executable, "-c", "from analysis.shortfin.releases import *; print(reported())"],
        env={**os.environ, "CACHELAB_PROBE": "3.0.0=3.1.0"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert older.stdout.strip() == reported()
    with pytest.raises(ReleaseError, match="is not a version"):
        releases._nearest("newest")
