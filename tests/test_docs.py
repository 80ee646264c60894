"""The documents name files, modules and imports that exist, and every folder of the package."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re

import pytest
from support import ROOT

DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
)
PATHS = "analysis|benchmarks|data|docs|environments|notebooks|tests"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_and_links_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    text = re.sub(r"^\*\*`.*", "", text, flags=re.MULTILINE)  # files that a reader makes
    paths = re.findall(rf"`((?:{PATHS})/[\w./]*)`", text)
    made = ("data/cache", "data/runs", "data/reports")
    paths = [path for path in paths if not path.startswith(made)]
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_and_their_members_exist(name: str) -> None:
    for dotted in re.findall(r"`(analysis(?:\.\w+)+)`", (ROOT / name).read_text()):
        assert pkgutil.resolve_name(dotted) is not None


# The code of the pages on adding something is run: test_worked_examples.py.
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "/add_" not in name])
def test_what_examples_import_exists(name: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        for statement in ast.walk(ast.parse(code)):
            if isinstance(statement, ast.ImportFrom) and statement.module:
                module = importlib.import_module(statement.module)
                assert [a.name for a in statement.names if not hasattr(module, a.name)] == []


def test_the_map_has_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.name for path in (ROOT / "analysis").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) >= folders


def test_every_page_is_linked_from_another() -> None:
    linked = set()
    for name in DOCUMENTS:
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text())
        linked |= {((ROOT / name).parent / target).resolve() for target in targets} - {ROOT / name}
    assert {*(ROOT / "docs").glob("*.md")} - linked == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_no_module_is_longer_than_400_lines() -> None:
    modules = [
        path for top in ("analysis", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ]
    assert [path.name for path in modules if path.read_text().count("\n") > 400] == []
