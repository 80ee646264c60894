"""Trials that occur twice, or that belong to another run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damages import COMMANDS, MANIFEST, rewrite
from old_runs import make_old
from synthetic import request_row, trial_row

from analysis.core.errors import RunError
from analysis.runs.packing import pack_runs
from analysis.runs.store import RunWriter, load_run, trial_tables


def doubled(table: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables([table, table])


def copied_trial(run: Path) -> None:
    shutil.copytree(run / "trials" / "a", run / "trials" / "d")


def renamed_trial(run: Path) -> None:
    (run / "trials" / "a").rename(run / "trials" / "d")


def copied_table(run: Path) -> None:
    shutil.copyfile(run / "trials/a/requests.parquet", run / "trials/b/requests.parquet")


def copied_into_old(run: Path) -> None:
    make_old(run)
    shutil.copyfile(run / "cells/a/requests.parquet", run / "cells/b/requests.parquet")


def second_row(run: Path) -> None:
    rewrite(run / "trials" / "a" / "trials.parquet", doubled)


def no_row(run: Path) -> None:
    rewrite(run / "trials" / "a" / "trials.parquet", lambda table: table[:0])


def packed_twice(run: Path) -> None:
    packed = pack_runs([run], run.with_name("packed"))
    shutil.rmtree(run)
    packed.rename(run)
    # An old packed run is known by its tables.
    rewrite(make_old(run) / "cells.parquet", doubled)


def strange_request(run: Path) -> None:
    packed = pack_runs([run], run.with_name("packed"))
    shutil.rmtree(run)
    packed.rename(run)
    rewrite(run / "trials.parquet", lambda table: table[:2])


def another_runs(run: Path) -> None:
    shutil.rmtree(run / "trials" / "a")
    manifest = {**MANIFEST, "run_id": "elsewhere"}
    writer = RunWriter.create(run.with_name("other"), manifest)
    row = trial_row(trial_id="a", run_id="elsewhere")
    writer.write_trial(row, [request_row(trial_id="a")]).rename(run / "trials" / "a")


COPIES = (copied_trial, renamed_trial, copied_table, copied_into_old, second_row, no_row,
          packed_twice, strange_request, another_runs)  # fmt: skip


@pytest.mark.parametrize("damage", COPIES)
def test_a_trial_is_counted_once_and_under_its_name(
    run: Path, damage: Callable[[Path], None], cachelab: Any
) -> None:
    damage(run)
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        assert status == 1, command
        assert "Traceback" not in stdout + stderr
        assert command in ("list", "verify") or (stdout, len(stderr.splitlines())) == ("", 1)
    with pytest.raises(RunError):
        load_run(run)
    with pytest.raises(RunError):  # what reads trial by trial
        list(trial_tables(run, ["trials", "requests"]))
