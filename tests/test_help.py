"""Every command and every target of make has an example in its help, and the examples work."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from support import ROOT

from analysis.cli import app

WIDTH = 78
RUN_HERE = ("plot", "export", "treatments", "notebooks list", "notebooks copy", "releases list",
            "runs list", "runs verify", "runs rm")  # fmt: skip
"""Commands whose examples end within a second, given the run `runs/first`; in this order."""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for word, child in getattr(command, "commands", {}).items():
        yield from leaves(child, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def examples(name: str) -> list[str]:
    lines = [line.strip() for line in COMMANDS[name].help.splitlines()]
    return [line for line in lines if line.startswith("cachelab ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_examples_that_can_be_read(name: str, cachelab: Any) -> None:
    found = examples(name)
    assert any(line.startswith(f"cachelab {name}") for line in found)
    for line in found:
        words = shlex.split(line)[1:]
        tried = next(c for c in COMMANDS if words[: len(c.split())] == c.split())
        COMMANDS[tried].make_context(tried, words[len(tried.split()) :])
    # In the help an example is one line, to be copied.
    shown = [line.strip() for line in cachelab(*name.split(), "--help")[1].splitlines()]
    assert [line for line in found if line not in shown] == []
    assert max(map(len, found)) <= WIDTH


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_examples_run(cachelab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data" / "reference", "runs/first")
    tried = [line for name in RUN_HERE for line in examples(name)]
    tried += [line for line in examples("sweep") if line.endswith("--dry-run")]
    assert len(tried) > len(RUN_HERE)
    for line in tried:
        status, _, stderr = cachelab(*shlex.split(line)[1:])
        assert status == 0, f"{line}: {stderr}"
    assert not Path("runs/first/manifest.json").exists()
    assert Path("my-notebooks", "01_reproduce.ipynb").is_file()


def test_make_lists_its_targets_and_examples_that_it_can_read() -> None:
    # Without what `make test` hands down to a make below it.
    given = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    ask = partial(subprocess.run, cwd=ROOT, env=given, capture_output=True, text=True)
    listed = ask(["make", "help"], check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    overview, _, tried = listed.partition("For example:\n")
    assert {line.split()[1] for line in overview.splitlines() if line} == targets
    for line in tried.splitlines():
        words = shlex.split(line)
        assert words[1] in targets
        read = ask([*words, "--dry-run"])
        assert (read.returncode, read.stderr) == (0, "")
        for setting in words[2:]:
            name, _, value = setting.partition("=")
            without = ask([*(word for word in words if word != setting), "--dry-run"])
            # SLOW=1 and RELEASES=all change the commands; another value stands in them.
            if value in ("1", "all"):
                assert read.stdout != without.stdout, name
            else:
                assert value in read.stdout, name
