"""Writers of a run on disk: resumed, killed, refused, packed; only whole trials are read."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import request_row, trial_row

from analysis.core.errors import RunError
from analysis.core.files import write_atomically
from analysis.diagnosis.request_trace import trace_of
from analysis.runs import store
from analysis.runs.packing import pack_directory, pack_runs
from analysis.runs.store import (
    RunWriter,
    alone_in,
    load_run,
    load_run_trials,
)
from analysis.sanitizer.recorded import check_run
from analysis.sweep.upkeep import verify_run

MANIFEST = {"plan": {"releases": ("3.1.0",)}, "seed": 0, "command": "test"}


def test_resume_takes_the_same_plan_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunWriter.resume(run, MANIFEST).write_trial(trial_row(), [])
    again = RunWriter.resume(run, {**MANIFEST, "command": "typed differently"})
    assert set(load_run_trials(run)) == {"c"}
    assert again.manifest["command"] == "test"
    with pytest.raises(RunError, match="another plan"):
        RunWriter.resume(run, {**MANIFEST, "seed": 1})
    with pytest.raises(RunError, match="already has a run"):
        RunWriter.create(run, MANIFEST)


def test_of_two_that_begin_a_run_at_once_only_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trials").mkdir()
    with alone_in(tmp_path), pytest.raises(RunError, match="Another sweep is writing"):
        RunWriter.create(tmp_path, MANIFEST)
    held = store.alone_in

    @contextmanager
    def late(path: Path) -> Iterator[None]:
        monkeypatch.setattr(store, "alone_in", held)
        RunWriter.create(path, {**MANIFEST, "run_id": "first"})
        with held(path):
            yield

    monkeypatch.setattr(store, "alone_in", late)
    with pytest.raises(RunError, match="already has a run"):
        RunWriter.create(tmp_path, {**MANIFEST, "run_id": "second"})
    assert load_run(tmp_path).manifest["run_id"] == "first"


@pytest.mark.parametrize("start", [RunWriter.create, RunWriter.resume])
def test_a_foreign_directory_is_refused(tmp_path: Path, start: Any) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="has other files than a run"):
        start(tmp_path, MANIFEST)
    with pytest.raises(RunError, match="is a file"):
        start(tmp_path / "thesis.txt", MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no manifest\.json"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json cannot be read"):
        load_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99"):
        load_run(tmp_path)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    for name in ("a", "b"):
        writer.write_trial(trial_row(trial_id=name), [request_row(trial_id=name)])
    file = tmp_path / "trials" / "b" / "requests.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        RunError, match=r"trials/b/requests\.parquet is damaged\. Delete .*trials/b and"
    ):
        load_run(tmp_path)
    file.unlink()
    with pytest.raises(RunError, match=r"trials/b/requests\.parquet is missing"):
        load_run(tmp_path)


def test_a_packed_run_reads_the_same_and_is_finished(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", {"plan": {}, "seed": 0})
    for name in ("a", "b"):
        writer.write_trial(trial_row(trial_id=name), [request_row(trial_id=name)])
    packed = pack_runs([tmp_path / "run"], tmp_path / "packed")
    assert sorted(file.name for file in packed.iterdir()) == [
        "checksums.json", "manifest.json", "requests.parquet", "trials.parquet",
    ]  # fmt: skip
    whole, again = load_run(tmp_path / "run"), load_run(packed)
    assert again.manifest == {**whole.manifest, "packed": True}
    pd.testing.assert_frame_equal(again.trials, whole.trials)
    pd.testing.assert_frame_equal(again.requests, whole.requests)
    with pytest.raises(RunError, match=r"exists\. Choose"):
        pack_runs([tmp_path / "run"], packed)
    with pytest.raises(RunError, match="packed run"):
        RunWriter.resume(packed, {"plan": {}, "seed": 0})
    file = packed / "requests.parquet"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RunError, match=r"requests\.parquet is damaged\. Restore the packed run"):
        load_run(packed)


def test_a_light_run_keeps_a_trial_with_failures_whole(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", {"plan": {"seed": 1, "sanitize": True}})
    event = {"t_s": 0.0, "thread": "main", "stack": "engine.py:1 in f"}
    call = {"invocation_id": 0, "phase": "decode", "rows": 1, "seq_lens": [5]}
    endings = (("a", [], "ok"), ("b", ["lock-cache"], "wrong"), ("c", [], "timeout"),
               ("d", [], "wrong"), ("e", [], "wrong"))  # fmt: skip
    for name, treatments, outcome in endings:
        writer.write_trial(
            trial_row(trial_id=name, treatments=treatments),
            [request_row(trial_id=name, outcome=outcome)],
            events=[{**event, "trial_id": name, "seq": n, "kind": k}
                    for n, k in enumerate(("submitted", "acquire"))],
            invocations=[{**call, "trial_id": name}],
            snapshots=[{"trial_id": name, "moment": "asked", "seq": n, "t_s": 0.0} for n in (1, 2)],
        )  # fmt: skip
    light = load_run(pack_runs([writer.path], tmp_path / "light", light=True))
    assert light.manifest["whole_trials"] == ["c", "d"]
    events = light.events.groupby("trial_id")["kind"].agg(list)
    assert events.map(len).to_dict() == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 1}
    assert light.events.groupby("trial_id")["stack"].count().to_dict() == {
        "a": 0, "b": 0, "c": 2, "d": 2, "e": 0,
    }  # fmt: skip
    assert light.invocations["rows"].tolist() == [1] * 5
    kept = light.invocations.dropna(subset=["seq_lens"])
    assert kept["trial_id"].tolist() == ["c", "d"]
    assert light.snapshots["trial_id"].tolist() == ["a", "b", "c", "c", "d", "d", "e"]
    assert trace_of(light, "r", "d").name == "r"
    with pytest.raises(RunError, match="except for c and d"):
        trace_of(light, "r", "e")


def test_a_copy_of_a_light_run_does_not_pass_for_whole(tmp_path: Path) -> None:
    places = []
    for name in ("first", "second"):
        writer = RunWriter.create(tmp_path / name, {"run_id": name, "plan": {"seed": 1}})
        for trial, outcome in (("a", "ok"), ("b", "wrong")):
            row = request_row(trial_id=trial, outcome=outcome)
            writer.write_trial(trial_row(trial_id=trial, run_id=name), [row])
        places.append(writer.path)
    light = pack_runs(places[:1], tmp_path / "light", light=True)
    for light_again in (True, False):
        out = tmp_path / f"both-{light_again}"
        both = load_run(pack_runs([places[1], light], out, light=light_again))
        whole = ["0/b", "1/b"] if light_again else ["0/a", "0/b", "1/b"]
        assert (both.manifest["light"], both.manifest["whole_trials"]) == (True, whole)
        with pytest.raises(RunError, match="light copy"):
            check_run(out)


def test_a_directory_is_copied_with_its_runs_packed(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    RunWriter.create(home / "sweep" / "one", {"plan": {"seed": 1}}).write_trial(
        trial_row(trial_id="a"), [request_row(trial_id="a")]
    )
    (home / "lock.json").write_text("{}")
    (home / "engine.log").write_text("long")
    assert pack_directory(home, copy) == copy
    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert files == {
        "lock.json", "sweep/one/manifest.json", "sweep/one/checksums.json",
        "sweep/one/trials.parquet", "sweep/one/requests.parquet",
    }  # fmt: skip
    assert len(load_run(copy / "sweep" / "one").trials) == 1
    with pytest.raises(RunError, match="exists"):
        pack_directory(home, copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="neither runs nor results"):
        pack_directory(tmp_path / "empty", tmp_path / "other")
    (home / "sweep" / "one" / "manifest.json").unlink()
    with pytest.raises(RunError, match="tables, but no manifest"):
        pack_directory(home, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_several_runs_become_one_light_run(tmp_path: Path) -> None:
    event = {"trial_id": "a", "t_s": 0.0, "thread": "main", "stack": "engine.py:1 in f"}
    events = [{**event, "seq": n, "kind": k} for n, k in enumerate(("acquire", "token", "free"))]
    snapshots = [{"trial_id": "a", "moment": "asked", "seq": seq, "t_s": 0.0} for seq in (3, 9, 6)]
    both = [tmp_path / "first", tmp_path / "second"]
    for place in both:
        writer = RunWriter.create(place, {"run_id": place.name, "plan": {"seed": 1}})
        row = trial_row(trial_id="a", run_id=place.name)
        requests = [request_row(trial_id="a")]
        writer.write_trial(row, requests, events=events, snapshots=snapshots)
    light = load_run(pack_runs(both, tmp_path / "light", light=True))
    assert light.trials["trial_id"].tolist() == ["0/a", "1/a"]
    assert [one["run_id"] for one in light.manifest["runs"]] == ["first", "second"]
    assert light.events["kind"].tolist() == ["acquire", "free"] * 2
    assert light.events["stack"].isna().all()
    assert light.snapshots["seq"].tolist() == [9, 9]
    with pytest.raises(RunError, match="light copy"):
        check_run(tmp_path / "light")
    with pytest.raises(RunError, match="light copy"):
        trace_of(light, "r", "0/a")
    whole = load_run(pack_runs(both, tmp_path / "whole"))
    assert (len(whole.events), len(whole.snapshots)) == (6, 6)


def test_runs_of_different_models_do_not_become_one(tmp_path: Path) -> None:
    both = [tmp_path / "first", tmp_path / "second"]
    for place in both:
        RunWriter.create(place, {"plan": {"model": place.name}})
    with pytest.raises(RunError, match="different models"):
        pack_runs(both, tmp_path / "packed")


WRITER = """
import sys
from analysis.runs.store import RunWriter
from synthetic import trial_row, request_row
writer = RunWriter.resume(sys.argv[1], {"plan": {}, "seed": 0})
print("ready", flush=True)
for number in range(1000000):
    name = f"{number:06d}-{sys.argv[2]}"
    requests = [request_row(trial_id=name, request_id=str(i)) for i in range(50)]
    writer.write_trial(trial_row(trial_id=name), requests)
    print(name, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_trials(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    for sitting in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "run"), str(sitting)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert writer.stdout
        with writer:
            # After a number of trials that has nothing to do with where in a trial the kill
            # arrives.
            output = [writer.stdout.readline().strip() for _ in range(5 + 7 * sitting)]
            writer.send_signal(signal.SIGKILL)
        run = load_run(tmp_path / "run")
        assert verify_run(tmp_path / "run").troubles == ()
        assert set(output[1:]) <= set(run.trials["trial_id"])
        assert (run.requests.groupby("trial_id").size() == 50).all()
        assert run.requests["trial_id"].nunique() == len(run.trials)
    RunWriter.resume(tmp_path / "run", {"plan": {}, "seed": 0})
    assert not list((tmp_path / "run" / "trials").glob(".*"))


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_trial_is_stored_if_its_directory_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter.create(tmp_path / "run", MANIFEST)
    trials = tmp_path / "run" / "trials"

    def fail(path: Path) -> None:
        if path == trials:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("analysis.runs.store.to_disk", fail)
    writer.write_trial(trial_row(trial_id="one"), [])
    assert [path.name for path in trials.iterdir()] == ["one"]
