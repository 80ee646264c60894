"""The command line: one sentence for an error, and only JSON on stdout where JSON was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import ROOT

from analysis.cli import main
from analysis.store import OUTCOMES, TABLES

SWEEP = ("sweep", "--releases", "3.9.0")


@pytest.fixture
def cachelab(monkeypatch, capsys):
    """Run the command line here; return its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cachelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['cachelab', '--help']\nfrom analysis.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'shortfin', 'iree', 'torch', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for command in ("sweep", "report", "lab", "model", "releases"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "bad",
    [
        ("sweep", "--releases", "3.0.0"),
        ("sweep", "--releases", ""),
        (*SWEEP, "--pages", "0"),
        (*SWEEP, "--pages", "-4"),
        (*SWEEP, "--pages", "many"),
        (*SWEEP, "--concurrency", "1,0"),
        (*SWEEP, "--workload", "absent.jsonl"),
        (*SWEEP, "--prefix-sharing", "tree"),
        (*SWEEP, "--repeats", "0"),
        (*SWEEP, "--repeats", "few"),
        (*SWEEP, "--jobs", "0"),
        (*SWEEP, "--option", "nothing"),
        (*SWEEP, "--cell-timeout", "0"),
        (*SWEEP, "--observe", "everything"),
        ("sweep",),
        ("releases", "install", "3.0.0"),
    ],
)
def test_a_bad_value_is_one_sentence_before_anything_is_started(bad, cachelab, tmp_path):
    out = ("--out", tmp_path / "run") if bad[0] == "sweep" else ()
    status, stdout, stderr = cachelab(*bad, *out)
    assert status in (1, 2)
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_place_that_holds_something_else_is_refused(cachelab, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    status, _, stderr = cachelab(*SWEEP, "--out", tmp_path)
    assert status == 1
    assert "holds something that is no run" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_dry_run_prints_the_grid_and_starts_nothing(cachelab, tmp_path):
    status, stdout, _ = cachelab(
        "sweep", "--releases", "3.1.0,3.9.0", "--prefix-sharing", "none,trie", "--pages", "256,24",
        "--concurrency", "1,2,4,8,16,32", "--workload", "mixed", "--repeats", "8", "--seed", "0",
        "--jobs", "2", "--observe", "snapshots", "--dry-run", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0
    lines = stdout.splitlines()
    assert len(lines) == 2 * 2 * 2 * 6 * 8 + 1
    assert lines[-1].startswith("384 cells, 2 at a time")
    assert not (tmp_path / "run").exists()


def test_json_is_one_object_per_cell_and_nothing_else(tmp_path):
    # In a process of its own, so that nothing below Python can write to stdout unseen either.
    options = ["--concurrency", "4", "--repeats", "2", "--workload", "reported", "--json"]
    start = [sys.executable, "-c", "from analysis.cli import main; main()"]
    done = subprocess.run(
        [*start, *SWEEP, *options, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert set(row) == {*TABLES["cells"].names, *OUTCOMES}
        assert (row["status"], row["ok"]) == ("ok", 4)
    assert "[2/2]" in done.stderr
