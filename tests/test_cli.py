"""The command line: one sentence for an error, and only JSON on stdout where JSON was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import NEWEST, RELEASES, ROOT
from synthetic import request_row, trial_row

from analysis.core import paths
from analysis.runs.store import OUTCOMES, TABLES, RunWriter, load_run
from analysis.sweep import runner

SWEEP = ("sweep", "--releases", NEWEST)
VALIDATE = ("validate", "--release", NEWEST)
LONG = "a" * 300
"""No file can have this name."""


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
        (*SWEEP, "--trial-timeout", "0"),
        (*SWEEP, "--observe", "everything"),
        ("sweep",),
        ("releases", "install", "3.0.0"),
        (*SWEEP, "--jobs", "0", "--dry-run"),
        (*SWEEP, "--concurrency", "1000000", "--dry-run"),
        (*SWEEP, "--rounds", str(10**12), "--dry-run"),
        (*SWEEP, "--rounds", "9" * 5000, "--dry-run"),
        (*SWEEP, "--repeats", "10000000", "--dry-run"),
        (*SWEEP, "--pages", "1000000", "--dry-run"),
        (*SWEEP, "--pages", "9" * 5000, "--dry-run"),
        (*SWEEP, "--max-new-tokens", "50000", "--dry-run"),
        (*SWEEP, "--max-new-tokens", "257"),
        (*SWEEP, "--device-ids", "foo", "--dry-run"),
        (*SWEEP, "--hip-target", "gfx000", "--dry-run"),
        (*SWEEP, "--treatments", "lock-cache+lock-cache", "--dry-run"),
        (*SWEEP, "--workload", LONG, "--dry-run"),
        (*SWEEP, "--model", LONG),
        (*SWEEP, "--option", f"a={'[' * 30}{']' * 30}", "--dry-run"),
        (*SWEEP, "--request-timeout", "nan", "--dry-run"),
        (*VALIDATE, "--rate", "1e-12"),
        (*VALIDATE, "--rate", "1e-300"),
        (*VALIDATE, "--rate", "nan"),
        (*VALIDATE, "--confidence", "1"),
        (*VALIDATE, "--time-budget", "nan"),
        (*VALIDATE, "--time-budget", "-1"),
        (*VALIDATE, "--isolated", "1e300"),
        (*VALIDATE, "--jobs", "0"),
        (*VALIDATE, "--tolerate", "own prefixes:cause=reason"),
        (*VALIDATE, "--treatments", "lock-cache+lock-cache"),
        (*VALIDATE, "--treatments", "lock-cache,pin-on-lookup"),
        (*VALIDATE, "--max-new-tokens", "257"),
        ("report", "--notebooks", ""),
        ("report", "--notebooks", LONG + ".ipynb"),
        ("report", "--releases", ""),
        ("model", "build", "--releases", ""),
        ("model", "build", "--releases", NEWEST, "--hip-target", "gfx000"),
        ("model", "verify", "--model", LONG),
        ("check", LONG),
        ("explain", LONG, "r"),
        ("plot", LONG),
    ],
    ids=lambda bad: " ".join(bad)[:60],
)
def test_a_bad_value_is_one_sentence_before_anything_is_started(bad, cachelab, tmp_path):
    out = ("--out", tmp_path / "run") if bad[0] in ("sweep", "validate", "report") else ()
    status, stdout, stderr = cachelab(*bad, *out)
    assert status in (1, 2)
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert len(stderr) < 1200
    assert not (tmp_path / "run").exists()


def test_a_place_that_holds_something_else_is_refused(cachelab, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    status, _, stderr = cachelab(*SWEEP, "--out", tmp_path)
    assert status == 1
    assert "has other files than a run" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_dry_run_prints_the_grid_and_starts_nothing(cachelab, tmp_path):
    status, stdout, _ = cachelab(
        "sweep", "--releases", ",".join(RELEASES), "--prefix-sharing", "none,trie",
        "--pages", "256,24",
        "--concurrency", "1,2,4,8,16,32", "--workload", "mixed", "--repeats", "8", "--seed", "0",
        "--jobs", "2", "--observe", "snapshots", "--dry-run", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0
    lines = stdout.splitlines()
    assert len(lines) == 2 * 2 * 2 * 6 * 8 + 1
    assert lines[-1].startswith("384 trials, 2 at a time")
    assert not (tmp_path / "run").exists()


def test_json_is_one_object_per_trial_and_nothing_else(tmp_path):
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
        assert set(row) == {*TABLES["trials"].names, *OUTCOMES}
        assert (row["status"], row["ok"]) == ("ok", 4)
    assert "[2/2]" in done.stderr


BOUNDS = [
    (("--concurrency", "1000000"), "from 1 to 4096, as each client is a thread"),
    (("--pages", "1000000"), "from 1 to 131072, as all of them are allocated at the start"),
    (("--repeats", "10000000"), "from 1 to 100000, as each repeat is a fresh engine"),
    (("--rounds", "10000000"), "from 1 to 1000000, as all prompts are kept in memory"),
]


@pytest.mark.parametrize(("option", "output"), BOUNDS)
def test_a_bound_comes_with_its_reason(option, output, cachelab):
    assert output in cachelab(*SWEEP, *option, "--dry-run")[2]


def test_validate_says_the_least_rate_and_which_rules_there_are(cachelab):
    assert "`--rate` of at least 3e-05" in cachelab(*VALIDATE, "--rate", "1e-9")[2]
    assert "wrong-kv-read" in cachelab(*VALIDATE, "--tolerate", "x:y=z")[2]


@pytest.fixture
def unwritable(tmp_path):
    """Return a path below a file, where no user can write, not even the superuser."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


@pytest.mark.parametrize("command", [SWEEP, VALIDATE, ("report",)])
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    command, cachelab, unwritable
):
    for place in (unwritable, unwritable.parent.parent / LONG):
        status, stdout, stderr = cachelab(*command, "--out", place)
        assert (status, stdout, len(stderr.splitlines())) == (1, "", 1)
        assert str(place) in stderr


def test_a_plot_is_written_whole_or_refused(cachelab, tmp_path, unwritable):
    reference = ROOT / "data" / "reference"
    (tmp_path / "full.png").symlink_to("/dev/full")
    (tmp_path / "directory.png").mkdir()
    places = [tmp_path / "full.png", tmp_path / "directory.png", unwritable.with_suffix(".png"),
              tmp_path / f"{LONG}.png", "/proc/chart.png"]  # fmt: skip
    for place in places:
        status, stdout, stderr = cachelab("plot", reference, "--out", place)
        assert (status, stdout, len(stderr.splitlines())) == (1, "", 1)
        assert str(place) in stderr
    whole = tmp_path / "new" / "chart.png"
    assert cachelab("plot", reference, "--out", whole)[:2] == (0, f"{whole}\n")
    assert whole.read_bytes().startswith(b"\x89PNG")
    assert list(whole.parent.iterdir()) == [whole]


@pytest.mark.parametrize("text", [
    "{}", "[]", "null", "hello", "[" * 100_000, '{"cells": []}',
    '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [3]}',
    '{"nbformat": 4, "nbformat_minor": 5, "metadata": {"cachelab": 3}, "cells": []}',
    '{"nbformat": 4, "nbformat_minor": 5, "metadata": {"cachelab": {"quick": 3}}, "cells": []}',
    '{"nbformat": 4, "nbformat_minor": 5, "metadata": {"cachelab": {"minutes_quick": "3"}},'
    ' "cells": []}',
    '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code",'
    ' "id": "a", "metadata": {"tags": ["parameters"]}, "source": "1 +", "outputs": [],'
    ' "execution_count": null}]}',
])  # fmt: skip
def test_what_is_no_notebook_is_refused_in_a_sentence(text, cachelab, tmp_path):
    (tmp_path / "bad.ipynb").write_text(text)
    out = tmp_path / "out"
    status, _, stderr = cachelab("report", "--notebooks", tmp_path / "bad.ipynb", "--out", out)
    assert status == 1
    assert len(stderr.splitlines()) == 1
    assert "bad.ipynb is no notebook that can be read: " in stderr
    assert not out.exists()


@pytest.mark.parametrize(("line", "output"), [
    ('{"prompt": "1 2 ", "max_new_tokens": 50000}', "as the reference decoder computes each"),
    ('{"prompt": "1 2 ", "max_new_tokens": 300}', "from 1 to 256, the model's context"),
    (json.dumps({"prompt": "1 " * 200}), "from 1 to 256, the model's context, tokens, not 401"),
    ('{"prompt": "1 2 ", "id": "\\ud800"}', "lone surrogate"),
    ('{"prompt": "\\ud800"}', "lone surrogate"),
    ("[" * 100_000, "line 1"),
])  # fmt: skip
def test_a_workload_that_cannot_be_asked_is_refused_before_a_run_begins(
    line, output, cachelab, tmp_path
):
    (tmp_path / "w.jsonl").write_text(line)
    out = tmp_path / "run"
    status, _, stderr = cachelab(*SWEEP, "--workload", tmp_path / "w.jsonl", "--out", out)
    assert status == 1
    assert len(stderr.splitlines()) == 1
    assert output in stderr
    assert not out.exists()


def test_an_environment_that_cannot_be_written_is_a_sentence(cachelab, tmp_path, monkeypatch):
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / f"{NEWEST}.txt").write_text("")
    (tmp_path / ".venvs").write_text("a file where the environments go")
    monkeypatch.setattr(paths, "repo_root", lambda: tmp_path)
    status, stdout, stderr = cachelab("releases", "install", NEWEST)
    assert (status, stdout, len(stderr.splitlines())) == (1, "", 1)
    assert f"{tmp_path / '.venvs'} cannot be used" in stderr


def test_nothing_that_a_terminal_obeys_is_printed(cachelab, tmp_path):
    path = os.fsdecode(b"run\x1b[31m\xff\r")
    status, _, stderr = cachelab("check", path)
    assert status == 1
    assert r"run\x1b[31m\udcff\r is not a run" in stderr
    name = "r\x1b]0;title\x07\u202e"
    writer = RunWriter.create(tmp_path / "run", {"plan": {}, "seed": 0})
    writer.write_trial(trial_row(), [request_row(request_id=name, outcome="wrong")])
    _, stdout, stderr = cachelab("explain", writer.path, name, "--no-reference")
    assert r"r\x1b]0;title\x07\u202e" in stdout
    assert all(line.isprintable() for line in (stdout + stderr).splitlines())


def test_the_last_line_counts_controls_that_did_not_end_well(cachelab, tmp_path, monkeypatch):
    def swept(plan, place, **_):
        writer = RunWriter.create(place, {"plan": {}, "seed": 0})
        writer.write_trial(trial_row(), [request_row()])
        control = {"trial_id": "k", "treatments": ["fault:wrong-page"], "status": "crashed"}
        writer.write_trial(trial_row(**control), [request_row(trial_id="k", outcome="engine_died")])
        return load_run(place)

    monkeypatch.setattr(runner, "run_sweep", swept)
    status, stdout, _ = cachelab(*SWEEP, "--sanitize", "--out", tmp_path / "run")
    assert status == 0
    assert "1 trials (0 did not end well), 1 controls (1 did not end well), 0 of 1" in stdout


RECORDED = ROOT / "data" / "recorded" / "04_first_wrong_step-3.1.0"


def test_the_versions_are_printed(cachelab):
    status, output, _ = cachelab("--version")
    assert (status, output.startswith("cachelab "), "shortfin" in output) == (0, True, True)


def test_a_run_is_shown_with_the_next_command(cachelab):
    [sweep] = RECORDED.glob("sweep-*")
    _, output, _ = cachelab("show", str(sweep))
    counted = [line.split() for line in output.splitlines() if line.strip().startswith("3.1.0")]
    assert len(counted) == 12
    assert output.strip().endswith(f"Next: cachelab explain {sweep}")
    _, output, _ = cachelab("show", str(ROOT / "data" / "reference"))
    assert "Nothing was recorded" in output


def test_without_a_request_the_first_failed_one_is_explained(cachelab):
    [sweep] = RECORDED.glob("sweep-*")
    status, output, _ = cachelab("explain", str(sweep), "--no-reference")
    assert status == 0
    first = output.splitlines()[1].split()
    assert first[2] == "wrong"
    assert f"\n{first[1]} of {first[0]}: wrong\n" in output
    trial = "3.1.0-none-p256-c2-r0"
    status, _, error = cachelab("explain", str(sweep), "--trial", trial)
    assert (status, error) == (1, f"No request of {trial} failed. Name the one to explain.\n")
    status, _, error = cachelab("explain", str(sweep), "--trial", "nosuch")
    assert (status, "has no trial 'nosuch'" in error) == (1, True)


def test_an_explanation_ends_with_what_to_try(cachelab):
    [sweep] = RECORDED.glob("sweep-*")
    _, output, _ = cachelab("explain", str(sweep), "--no-reference")
    assert output.splitlines()[-1] == (
        "  cachelab sweep --releases 3.1.0 --prefix-sharing none --pages 256 --concurrency 2"
        " --workload mixed --rounds 1 --repeats 8 --treatments none,correct-seq-lens"
    )
    trial = "3.1.0-trie-p256-c2-r1-correct-seq-lens-zero-start-positions-zero-page-tables"
    _, output, _ = cachelab("explain", str(sweep), "r0001", "--trial", trial, "--no-reference")
    base = "correct-seq-lens+zero-start-positions+zero-page-tables"
    assert f"--treatments {base},{base}+" in output.splitlines()[-1]
