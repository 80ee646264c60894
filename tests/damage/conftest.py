"""Fixtures: a run of three recorded trials, and commands that read it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import IDS, MANIFEST, A, B, story
from synthetic import request_row, trial_row

from analysis.cli import main
from analysis.runs.store import RunWriter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three trials that were recorded."""
    path = tmp_path_factory.mktemp("made") / "run"
    writer = RunWriter.create(path, MANIFEST)
    for place, name in enumerate(IDS):
        requests = [
            request_row(trial_id=name, request_id=each, outcome="wrong" if each == "a" else "ok",
                        prompt_tokens=A if each == "a" else B, first_divergence=None)
            for each in ("a", "b")
        ]  # fmt: skip
        writer.write_trial(trial_row(trial_id=name, repeat=place), requests, **story().tables(name))
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def cachelab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command over a run, here; return its exit status, stdout and stderr."""

    def ask(command: str, run: Path) -> tuple[int, str, str]:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        arguments = {
            "plot": ("plot", run, "--out", out / "plot.png"),
            "check": ("check", run),
            "explain": ("explain", run, "a", "--trial", "b", "--no-reference"),
            "export": ("export", run, "--out", out / "exported"),
            "list": ("runs", "list", run),
            "verify": ("runs", "verify", run),
        }[command]
        monkeypatch.setattr(sys, "argv", ["cachelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return ask
