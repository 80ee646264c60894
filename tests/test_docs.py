"""The documents name files that exist, and every folder of the package."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
from support import ROOT

DOCUMENTS = ("README.md", "docs/architecture.md", "docs/glossary.md", "docs/statistics.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_and_links_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    paths = re.findall(r"`((?:analysis|docs|data|tests|benchmarks|environments)/[\w./]*)`", text)
    paths = [path for path in paths if not path.startswith(("data/runs", "data/reports"))]
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert missing == []


def test_the_map_has_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.name for path in (ROOT / "analysis").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) >= folders


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_examples_import_exists(name: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        for statement in ast.walk(ast.parse(code)):
            if isinstance(statement, ast.ImportFrom) and statement.module:
                module = importlib.import_module(statement.module)
                assert [a.name for a in statement.names if not hasattr(module, a.name)] == []
