"""Children import this package and nothing of the working directory, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import CHILD_ENVIRONMENT, REPORTED, wait_for

import analysis
from analysis.core import children
from analysis.core.errors import EngineError, MachineError
from analysis.shortfin.environments import register_kernel
from analysis.sweep.process import STACKS, TrialProcess, trial_servers
from analysis.sweep.trial import _number_of, specification
from analysis.workloads.workload import Request, Workload

ASKED = specification({}, Workload("w", (Request("r", "1 2 3 "),)), 1, 1.0)


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with another package of this name."""
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("what", ["-m", "-c"])
def test_a_child_does_not_import_from_the_working_directory(shadow: Path, what: str) -> None:
    asked = {
        "-m": "analysis.shortfin.treatment",
        "-c": "import analysis; print(analysis.__file__)",
    }[what]
    child = children.start([sys.executable, what, asked], stdout=subprocess.PIPE)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert output.decode().strip() == ("" if what == "-m" else analysis.__file__)


def test_no_kernel_imports_from_the_notebook_s_folder(shadow: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(shadow))
    spec = (register_kernel(REPORTED, Path(sys.executable)) / "kernel.json").read_text()
    assert '"-P"' in spec


def test_where_nothing_of_us_can_be_imported_that_is_not_the_engine_s_failure(
    shadow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**children.environment(), "PYTHONPATH": str(shadow)}
    monkeypatch.setattr(children, "environment", lambda: environment)
    with trial_servers() as servers:
        trial = TrialProcess(servers, Path(sys.executable), ASKED, shadow / "work", 60)
        wait_for(trial.poll, "the trial's end")
        with pytest.raises(MachineError, match="could not start the engine: not this one"):
            trial.ended()


_HOLD = """
import sys, time
from pathlib import Path
from analysis.core import children
with children.scratch("held", Path(sys.argv[1])) as folder:
    program = children.until_we_end("/bin/sleep", "1000")
    print(children.start(program).pid, flush=True)
    time.sleep(1000)
"""


def test_what_a_killed_process_left_is_removed_and_what_it_started_ends(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "held-from-before-there-were-locks").mkdir()
    (mine / "held-a-link").symlink_to(tmp_path, target_is_directory=True)
    owner = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(mine)], stdout=subprocess.PIPE, env=CHILD_ENVIRONMENT
    )
    assert owner.stdout is not None
    sleeper = psutil.Process(int(owner.stdout.readline()))
    with owner.stdout:
        wait_for(lambda: sleeper.name() == "sleep", "the other program")
        (kept,) = [path for path in mine.glob("held-*") if not path.is_symlink()]
        with children.scratch("held", mine) as ours:
            assert ours.is_dir()
            assert kept.is_dir()  # its owner lives
        assert not ours.exists()
        owner.send_signal(signal.SIGKILL)
        owner.wait(60)
    wait_for(lambda: not sleeper.is_running(), "the end of what it had started")
    with children.scratch("held", mine) as ours:
        assert set(mine.iterdir()) == {ours, mine / "held-a-link"}
    assert tmp_path.is_dir()
    assert os.listdir(mine) == ["held-a-link"]


def test_a_folder_that_cannot_be_locked_is_an_error_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(children.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="locks"), children.scratch("test", tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (MemoryError(), errno.ENOMEM),
        (RuntimeError("can't start new thread"), errno.EAGAIN),
        (ImportError("not this one"), 0),
        (RuntimeError("a mistake of the engine"), None),
    ],
)
def test_a_trial_says_what_the_machine_lacked_by_its_status(
    error: BaseException, number: int | None
) -> None:
    wrapped = EngineError("It cannot be started.")
    wrapped.__cause__ = error
    assert _number_of(error) == number
    if number:
        assert _number_of(wrapped) == number


@pytest.mark.parametrize(("status", "output"), [(128, "No space left"), (255, None), (1, None)])
def test_only_what_is_an_error_of_the_system_is_read_from_a_status(
    tmp_path: Path, status: int, output: str | None
) -> None:
    with trial_servers() as servers:
        trial = TrialProcess(servers, Path(sys.executable), ASKED, tmp_path / "work", 60)
        wait_for(trial.poll, "the trial's end")
    (trial.directory / STACKS).touch()  # it came to where an engine is started
    trial._process.returncode = status
    if output:
        with pytest.raises(MachineError, match=output):
            trial.ended()
    else:
        assert trial.ended().status == "crashed"
