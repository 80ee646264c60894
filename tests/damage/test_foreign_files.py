"""Files that belong to other users, or that are not part of a run."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damages import COMMANDS, flip

from analysis.core import files
from analysis.core.errors import RunError
from analysis.runs.store import load_run


def as_another_user(action: Callable[[], Any]) -> str:
    """Return the error that an action raises in a child of another user; "" if it raises none."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            action()
            output = ""
        except BaseException as error:
            output = f"{type(error).__name__}: {error}"
        os.write(writing, output.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        in_time = select.select([pipe], [], [], 60)[0]
        if not in_time:
            os.kill(child, signal.SIGKILL)
        output = pipe.read().decode()
    os.waitpid(child, 0)
    assert in_time
    return output


@pytest.mark.parametrize(
    ("closed", "mode"),
    [("manifest.json", 0o600), ("trials", 0o700), ("trials/b", 0o700),
     ("trials/b/requests.parquet", 0o600), ("trials/b/checksums.json", 0o600), ("", 0o700)],
)  # fmt: skip
def test_an_unreadable_file_of_another_user_names_the_owner(
    run: Path, closed: str, mode: int
) -> None:
    for place in [run, *run.parents]:
        if place == Path("/tmp"):
            break
        place.chmod(place.stat().st_mode | 0o055)
    (run / closed).chmod(mode)
    output = as_another_user(lambda: load_run(run))
    assert output.startswith("RunError:")
    assert f"You have no read permission for {run / closed}, which belongs to root" in output
    assert "chmod" in output
    assert "delete" not in output.lower()
    assert "damaged" not in output


def test_an_own_file_without_read_permission_is_named() -> None:
    error = files.unreadable(Path(__file__), PermissionError(13, "Permission denied"))
    assert "is yours, but you have no read permission" in str(error)
    assert "delete" not in str(error)


@pytest.mark.parametrize("what", ["folder", "file", "empty"])
def test_foreign_files_are_never_advised_to_be_deleted(run: Path, what: str, cachelab: Any) -> None:
    place = run / "trials" / "notes"
    if what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        if what == "folder":
            (place / "thesis.txt").write_text("years of work")
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        output = stdout + stderr
        assert status == 1, command
        assert str(place) in output
        assert "not a trial of the run" in output
        assert "Move it out of" in output
        assert "delete" not in output.lower()
        assert "damaged" not in output
    # Editors and file managers create hidden ones.
    place.rename(run / "trials" / ".notes")
    assert len(load_run(run).trials) == 3


def test_a_foreign_file_in_a_damaged_trial_is_kept(run: Path) -> None:
    directory = run / "trials" / "b"
    (directory / "thesis.txt").write_text("years of work")
    assert len(load_run(run).trials) == 3
    flip(directory / "requests.parquet", 500)
    with pytest.raises(
        RunError, match=rf"damaged\. Move {directory}/thesis\.txt elsewhere, delete {directory} and"
    ):
        load_run(run)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Path) -> None:
    for name in ("trials/b/requests.parquet", "manifest.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
        with pytest.raises(RunError, match="is not a regular file"):
            load_run(run)
