"""A run with altered bits is never read as other data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from damages import IDS, MANIFEST, files_of, one_trial, read, same
from old_runs import make_old

from analysis.core.errors import RunError
from analysis.runs.packing import pack_runs
from analysis.runs.store import Run, RunWriter, load_run


@pytest.mark.parametrize("packed", [False, True], ids=["trials", "packed"])
def test_no_altered_bit_gives_other_data(made: Path, tmp_path: Path, packed: bool) -> None:
    run = one_trial(made, tmp_path / "run")
    run = pack_runs([run], tmp_path / "packed") if packed else run
    whole = read(run)
    silent = []
    for file in files_of(run):
        content = file.read_bytes()
        for place in range(0, len(content) * 8, max(1, len(content) * 8 // 61)):
            altered = bytearray(content)
            altered[place // 8] ^= 1 << place % 8
            file.write_bytes(altered)
            try:
                if not same(read(run), whole):
                    silent.append((file.name, place))
            except RunError:
                pass
        file.write_bytes(content)
    assert silent == []


def test_an_altered_bit_without_checksums_changes_no_outcome(made: Path, tmp_path: Path) -> None:
    run = make_old(one_trial(made, tmp_path / "run"))
    file = run / "cells" / "a" / "requests.parquet"
    content, refused = file.read_bytes(), 0
    for place in range(0, len(content) * 8, len(content) * 8 // 199):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        try:
            assert set(load_run(run).requests["outcome"]) <= {"ok", "wrong"}
        except RunError:
            refused += 1
    assert refused > 20


def test_a_run_without_checksums_is_read_and_packed_with_them(
    made: Path, tmp_path: Path, cachelab: Any
) -> None:
    old = make_old(Path(shutil.copytree(made, tmp_path / "run")))
    assert same(read(old), Run(**{**vars(read(made)), "manifest": read(old).manifest}))
    status, stdout, _ = cachelab("verify", old)
    assert status == 0
    assert "before there were checksums" in stdout
    packed = pack_runs([old], tmp_path / "packed")
    status, stdout, _ = cachelab("verify", packed)
    assert status == 0
    assert "all as they were written" in stdout


def test_a_run_of_an_earlier_version_can_only_be_read(made: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        old = make_old(Path(shutil.copytree(made, tmp_path / f"run-{version}")), version)
        assert list(load_run(old).trials["trial_id"]) == [*IDS]
        with pytest.raises(RunError, match="an earlier version, which can only be read"):
            RunWriter.resume(old, MANIFEST)
