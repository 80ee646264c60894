"""Runs as things on disk: listed, verified and removed by the command line."""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from old_runs import make_old
from support import ROOT
from synthetic import request_row, trial_row

from analysis.cli import main
from analysis.runs.packing import pack_runs
from analysis.runs.store import RunWriter, alone_in, load_run
from analysis.sweep.plan import Plan

PLAN = Plan(releases=("3.1.0",), concurrency=(1, 2), repeats=2, pages=(64,))
CacheLab = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cachelab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CacheLab:
    """Run a command of `runs` here; return its exit status, stdout and stderr."""

    def ask(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cachelab", "runs", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return ask


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three of its plan's four trials, two requests each."""
    path = tmp_path / "runs" / "deep" / "one"
    manifest = {"plan": PLAN.as_dict(), "seed": 0, "created": "2026-01-02T03:04:05+00:00"}
    writer = RunWriter.create(path, manifest)
    for trial in PLAN.trials()[:3]:
        name = trial.trial_id
        requests = [request_row(trial_id=name, request_id=str(i)) for i in range(2)]
        writer.write_trial(trial_row(trial_id=name), requests)
    return path


def test_a_list_shows_plan_and_progress(run: Path, tmp_path: Path, cachelab: CacheLab) -> None:
    status, stdout, stderr = cachelab("list", tmp_path / "runs")
    assert (status, stderr) == (0, "")
    first, second = stdout.splitlines()
    assert first.startswith(f"{run}  3 of 4 trials, 6 requests, ")
    assert first.endswith(" MB, 2026-01-02T03:04:05+00:00")
    assert "3.1.0: mixed, none, pages 64, 1,2 at once, 2 repeats" in second
    with alone_in(run):
        assert "being written" in cachelab("list", tmp_path / "runs")[1]
    assert "being written" not in cachelab("list", run)[1]  # a run itself
    _, stdout, _ = cachelab("list", tmp_path / "runs", "--json")
    row = json.loads(stdout)
    assert (row["path"], row["finished"], row["planned"]) == (str(run), 3, 4)
    assert row["size_bytes"] == sum(f.stat().st_size for f in run.rglob("*") if f.is_file())


def test_a_list_names_what_cannot_be_read(run: Path, tmp_path: Path, cachelab: CacheLab) -> None:
    (tmp_path / "runs" / "two").mkdir()
    (tmp_path / "runs" / "two" / "manifest.json").write_text("{")
    status, stdout, _ = cachelab("list", tmp_path / "runs")
    assert status == 1
    assert "3 of 4 trials" in stdout
    assert "two/manifest.json cannot be read" in stdout
    assert cachelab("list", tmp_path / "nowhere")[0] == 1
    (tmp_path / "none").mkdir()
    assert cachelab("list", tmp_path / "none")[:2] == (
        0, f"There is no run in {tmp_path / 'none'}.\n",
    )  # fmt: skip


def test_what_is_whole_is_verified_with_status_0(run: Path, cachelab: CacheLab) -> None:
    reference = ROOT / "data" / "reference"
    status, stdout, stderr = cachelab("verify", run, reference)
    assert (status, stderr) == (0, "")
    first, second = stdout.splitlines()
    assert first == (
        f"{run}: 3 of 4 planned trials, 6 requests, 9 rows in 6 tables, all as they were written"
    )
    assert second.endswith("8064 requests, 8256 rows in 2 tables, all as they were written")
    status, stdout, _ = cachelab("verify", make_old(run))
    assert status == 0
    assert "6 tables are of before there were checksums" in stdout


def test_every_problem_is_named(run: Path, cachelab: CacheLab) -> None:
    first, second, _ = sorted((run / "trials").iterdir())
    content = bytearray((first / "requests.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (first / "requests.parquet").write_bytes(content)
    (second / "requests.parquet").unlink()
    (run / "trials" / "notes").mkdir()
    status, stdout, _ = cachelab("verify", run)
    assert status == 1
    assert f"{run}: 1 of 4 planned trials, 2 requests" in stdout
    assert f"{first}/requests.parquet is damaged" in stdout
    assert f"{second}/requests.parquet is missing" in stdout
    assert f"{run}/trials/notes is not a trial of the run" in stdout
    assert "as they were written" not in stdout
    _, stdout, _ = cachelab("verify", run, "--json")
    assert len(json.loads(stdout)["troubles"]) == 3


def test_what_a_run_consists_of_is_removed_and_nothing_else(
    run: Path, tmp_path: Path, cachelab: CacheLab
) -> None:
    trial = sorted((run / "trials").iterdir())[0]
    for kept in ("mine.txt", "findings.parquet", "trials/mine.parquet", "answer.json",
                 f"trials/{trial.name}/mine.parquet", "logs/notes.txt",
                 f"logs/{trial.name}/mine.txt", "work.txt"):  # fmt: skip
        (run / kept).parent.mkdir(parents=True, exist_ok=True)
        (run / kept).write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "requests.parquet").write_text("mine")
    (run / "trials" / "linked").symlink_to(elsewhere)
    for own in ("trials/.writing-1-a/trials.parquet", f"logs/{trial.name}/stacks.txt",
                f"logs/{trial.name}/watchdog-3.txt", "work/c/spec.json",
                ".manifest.json.1-a"):  # fmt: skip
        (run / own).parent.mkdir(parents=True, exist_ok=True)
        (run / own).write_text("ours")
    status, stdout, stderr = cachelab("rm", run, "--yes")
    assert (status, stderr) == (0, "")
    left = {str(p.relative_to(run)) for p in run.rglob("*") if not p.is_dir() or p.is_symlink()}
    assert left == {
        "mine.txt", "findings.parquet", "trials/mine.parquet", "answer.json",
        f"trials/{trial.name}/mine.parquet",
        "logs/notes.txt", f"logs/{trial.name}/mine.txt", "work.txt", "trials/linked",
    }  # fmt: skip
    assert stdout.count("is none of the run's and was left") == 8
    assert (elsewhere / "requests.parquet").read_text() == "mine"


def test_a_run_without_other_files_is_removed(
    run: Path, tmp_path: Path, cachelab: CacheLab
) -> None:
    packed = pack_runs([run], tmp_path / "runs" / "packed")
    status, stdout, _ = cachelab("rm", packed, run, "--yes")
    assert (status, stdout) == (0, f"{packed}: removed\n{run}: removed\n")
    assert not packed.exists()
    assert not run.exists()


def test_what_must_not_be_removed_stays(
    run: Path, tmp_path: Path, cachelab: CacheLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "trials").mkdir(parents=True)
    (home / "trials" / "trials.parquet").write_text("mine")
    for place in (home, tmp_path / "nowhere", run / "trials"):
        status, stdout, stderr = cachelab("rm", run, place, "--yes")
        assert (status, stdout) == (1, "")
        assert f"{place} is not a run" in stderr
    with alone_in(run):
        status, stdout, stderr = cachelab("rm", run, "--yes")
    assert (status, stdout) == (1, "")
    assert f"A sweep is writing to {run}" in stderr
    status, _, stderr = cachelab("rm", run)
    assert (status, stderr) == (1, "Nothing was removed: confirm with `--yes`.\n")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert cachelab("rm", run)[0] == 1
    assert len(load_run(run).trials) == 3
    assert (home / "trials" / "trials.parquet").read_text() == "mine"
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert cachelab("rm", run)[0] == 0
    assert not os.path.lexists(run)


def test_files_that_a_sweep_moves_away_meanwhile_do_not_end_the_list(
    run: Path, tmp_path: Path, cachelab: CacheLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def with_one_that_is_gone(top: Path) -> object:
        return ((place, inner, [*files, "moved"]) for place, inner, files in walk(top))

    monkeypatch.setattr("analysis.sweep.upkeep.os.walk", with_one_that_is_gone)
    status, stdout, _ = cachelab("list", tmp_path / "runs")
    assert status == 0
    assert "3 of 4 trials" in stdout


def test_to_ask_whether_a_run_is_written_is_not_to_write_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with alone_in(run):
        pass
    with open(run / ".sweep.lock") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        monkeypatch.setattr(
            "analysis.runs.lock.time.sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN)
        )
        with alone_in(run):
            pass


def test_a_stream_closed_by_the_shell_is_ignored(
    run: Path, cachelab: CacheLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cachelab("verify", run)[0] == 0


def test_what_is_no_run_is_not_verified(run: Path, tmp_path: Path, cachelab: CacheLab) -> None:
    status, stdout, stderr = cachelab("verify", run, tmp_path)
    assert (status, stdout) == (1, "")
    assert "is not a run" in stderr
