"""Random damage never leads to other data or a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from damages import COMMANDS, IDS, files_of, flip, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from old_runs import make_old

from analysis.core.errors import RunError
from analysis.runs.packing import pack_runs
from analysis.runs.schema import TABLES


def damaged(run: Path, kind: str, number: int, other: int) -> bool:
    """Do one damage; return whether whole trials may be gone, as in a run that is not finished."""
    places = [*files_of(run), *sorted((run / "trials").glob("*"))] if run.is_dir() else []
    if not places:
        return False
    place, target = places[number % len(places)], places[other % len(places)]
    whole_trial = place.parent.name == "trials"  # or what an earlier damage left of one
    if kind == "delete":
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    elif kind == "truncate" and place.is_file():
        place.write_bytes(place.read_bytes()[: other % max(1, place.stat().st_size)])
    elif kind == "flip" and place.is_file() and place.stat().st_size:
        flip(place, other)
    elif kind == "rename":
        place.rename(place.with_name(f"{place.name}{other % 3}"))
    elif kind == "hide":
        place.rename(place.with_name(f".{place.name}"))
    elif kind == "copy" and place.is_file() and target.is_file() and place != target:
        shutil.copyfile(place, target)
    elif kind == "copy" and place.is_dir():
        copy = place.with_name(f"{place.name}{other % 3}")
        shutil.copytree(place, copy, symlinks=True, dirs_exist_ok=True)
    elif kind == "directory" and place.is_file():
        place.unlink()
        place.mkdir()
    elif kind == "file" and place.is_dir():
        shutil.rmtree(place)
        place.write_text("")
    elif kind == "socket" and place.is_file():
        place.unlink()
        place.symlink_to(place)  # a link to itself
    return whole_trial and kind in ("delete", "hide", "rename")


KINDS = ("delete", "truncate", "flip", "rename", "hide", "copy", "directory", "file", "socket")


@given(
    layout=st.sampled_from(("trials", "packed", "old")),
    done=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 10_000), st.integers(0, 100_000)),
        min_size=1,
        max_size=3,
    ),
    command=st.sampled_from(COMMANDS),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_gives_other_data_nor_a_traceback(
    made: Path,
    tmp_path: Path,
    cachelab: Any,
    layout: str,
    done: list[tuple[str, int, int]],
    command: str,
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    if layout == "packed":
        pack_runs([made], run)
    else:
        shutil.copytree(made, run)
    if layout == "old":
        make_old(run)
    whole = read(run)
    partial = sum(damaged(run, *each) for each in done) > 0
    try:
        now = read(run)
    except RunError:
        status, stdout, stderr = cachelab(command, run)
        assert "Traceback" not in stdout + stderr
        assert len(stderr.splitlines()) <= 1
        # Commands that need not read what is damaged may give what is right of the rest.
        assert status != 0 or command == "list"
        return
    if layout == "old":  # other data cannot be detected
        assert "Traceback" not in "".join(cachelab(command, run)[1:])
        return
    trials = set(now.trials["trial_id"])
    assert trials == set(IDS) or partial
    assert now.manifest == whole.manifest
    for name in TABLES:
        frame = getattr(whole, name)
        expected = frame[frame["trial_id"].isin(trials)].reset_index(drop=True)
        pd.testing.assert_frame_equal(getattr(now, name), expected)
    status, stdout, stderr = cachelab(command, run)
    assert "Traceback" not in stdout + stderr
    assert status == (4 if command == "check" else 0) or len(trials) < 3
