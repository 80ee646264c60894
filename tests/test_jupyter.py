"""What a notebook shows of the data: the formatters, and who imports IPython."""

from __future__ import annotations

import re
from importlib import import_module

from IPython.core.interactiveshell import InteractiveShell
from support import ROOT
from test_snapshot import snapshot

from analysis.jupyter import FORMATTERS, html_of


def test_every_type_that_has_a_formatter_exists() -> None:
    for path in FORMATTERS:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(import_module(module), name), type), path


def test_a_shell_shows_data_after_the_extension_is_loaded() -> None:
    shell = InteractiveShell()
    value = snapshot(4)
    assert "text/html" not in shell.display_formatter.format(value)[0]
    shell.run_line_magic("load_ext", "analysis.jupyter")
    assert shell.display_formatter.format(value)[0]["text/html"] == html_of(value)


def test_data_does_not_draw_itself_and_only_this_package_imports_ipython() -> None:
    for file in (ROOT / "analysis").rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"def _(repr_\w+|ipython_display)_\(", text), file
        if file.parent.name != "jupyter":
            assert not re.search(r"^\s*(from|import) IPython", text, re.MULTILINE), file
