"""Real engines recorded in a sweep: what was seen is stored however the trial ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest
from support import NEWEST, RELEASES, REPORTED, ChildRunner, has
from sweep_help import endless_workload, sweep_and_signal

from analysis.recording.stream import read_stream
from analysis.runs.store import RunWriter, load_run
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep

DERIVED = ["cached_tokens", "evictions_during", "pages_before", "pages_after"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """One trial on each release, its snapshots too, three rounds of prompts that share prefixes."""
    plan = Plan(
        releases=RELEASES,
        prefix_sharing=("trie",),
        concurrency=(2,),
        repeats=1,
        rounds=3,
        workload="shared_prefix",
        observe="snapshots",
    )
    out = tmp_path_factory.mktemp("watched") / "run"
    return plan, run_sweep(plan, out, jobs=2, progress=False)


def of_trial(frame: pd.DataFrame, release: str) -> pd.DataFrame:
    return frame[frame["trial_id"].str.startswith(release)].reset_index(drop=True)


def test_invocations_events_and_snapshots_are_stored_with_the_trial(watched, release):
    _, run = watched
    assert set(run.trials["recording"]) == {"events and snapshots"}
    assert set(run.trials["status"]) == {"ok"}
    assert run.trials["status_detail"].isna().all()
    assert run.manifest["plan"]["observe"] == "snapshots"
    requests, events, invocations, snapshots = (
        of_trial(frame, release)
        for frame in (run.requests, run.events, run.invocations, run.snapshots)
    )
    assert events["seq"].is_monotonic_increasing
    assert events["seq"].is_unique
    asked = set(requests["request_id"])
    for kind in ("submitted", "done"):
        assert sorted(events[events["kind"] == kind]["request_id"]) == sorted(asked)
    for moment in ("before", "after"):
        assert set(snapshots[snapshots["moment"] == moment]["request_id"]) == asked
    assert snapshots["moment"].iloc[0] == snapshots["moment"].iloc[-1] == "asked"
    executed = {request for ids in invocations["request_ids"] for request in ids}
    assert executed == asked
    assert list(invocations["invocation_id"]) == sorted(set(invocations["invocation_id"]))
    states = snapshots[["free", "live", "cached", "leaked"]].sum(axis=1)
    assert (states == snapshots["page_count"]).all()


def test_requests_have_their_derived_columns(watched, release):
    _, run = watched
    requests, events = of_trial(run.requests, release), of_trial(run.events, release)
    shares = has(release, "prefix-sharing")
    derived = DERIVED if shares else [name for name in DERIVED if name != "cached_tokens"]
    assert requests[derived].notna().all(axis=None)
    assert (requests["evictions_during"] == 0).all()  # 256 pages are plenty
    assert requests["pages_before"].min() == 0
    if not shares:  # nothing is looked up, and no page is in use when all have ended
        assert requests["cached_tokens"].isna().all()
        return
    assert (requests["pages_after"] > 0).all()
    looked = events[(events["kind"] == "match") & events["operation"].isin(["acquire", "lookup"])]
    first = looked.drop_duplicates("request_id").set_index("request_id")["tokens_hit"]
    reported = requests.set_index("request_id")["cached_tokens"]
    assert dict(reported) == dict(first)
    assert (reported >= 0).all()
    assert (reported > 0).any()  # prompts that share a prefix found it in the cache


def test_times_lie_on_one_axis(watched, release):
    _, run = watched
    requests = of_trial(run.requests, release).set_index("request_id")
    events = of_trial(run.events, release)
    for kind, at in (
        ("submitted", requests["submitted_s"]),
        ("done", requests["submitted_s"] + requests["latency_s"]),
    ):
        reported = events[events["kind"] == kind].set_index("request_id")["t_s"]
        assert (
            (reported - at).abs() < 1
        ).all()  # far apart only if clocks start at different moments


def test_without_snapshots_there_are_events_and_invocations(tmp_path):
    plan = Plan(releases=(NEWEST,), concurrency=(2,), repeats=1, observe="events")
    run = run_sweep(plan, tmp_path / "run", progress=False)
    assert set(run.trials["recording"]) == {"events"}
    assert len(run.invocations) > 0
    assert set(run.snapshots["moment"]) == {"asked"}  # where a replay starts and ends
    assert run.requests["evictions_during"].notna().all()
    assert run.requests["pages_before"].isna().all()


def test_an_unobserved_trial_stores_no_recording(tmp_path):
    plan = Plan(releases=(NEWEST,), concurrency=(1,), repeats=1)
    run = run_sweep(plan, tmp_path / "run", progress=False)
    assert set(run.trials["recording"]) == {"nothing"}
    assert run.events.empty
    assert run.requests[DERIVED].isna().all(axis=None)


def test_a_watched_sweep_is_gone_on_with(watched, tmp_path):
    plan, run = watched
    out = tmp_path / "run"
    writer = RunWriter.create(out, run.manifest)
    kept, missing = run.trials["trial_id"]
    # The first trial as it is on disk, the second never run.
    (run.path / "trials" / kept).rename(writer.path / "trials" / kept)
    try:
        reported = []
        again = run_sweep(plan, out, on_trial=lambda row, _: reported.append(row), progress=False)
        assert [row["trial_id"] for row in reported] == [missing]
        assert set(again.events["trial_id"]) == {kept, missing}
    finally:
        (writer.path / "trials" / kept).rename(run.path / "trials" / kept)


def _has_spilled_an_answer(out: Path) -> bool:
    for directory in out.glob("work/*"):
        streamed = read_stream(directory)
        if "snapshots" in streamed and "done" in streamed["events"]["kind"].to_pylist():
            return "after" in streamed["snapshots"]["moment"].to_pylist()
    return False


@pytest.mark.parametrize("release", RELEASES)
def test_a_trial_killed_midway_keeps_what_was_recorded(tmp_path, release):
    plan = Plan(
        releases=(release,),
        concurrency=(1,),
        repeats=1,
        workload=str(endless_workload(tmp_path)),
        observe="snapshots",
    )
    run = sweep_and_signal(plan, tmp_path / "run", signal.SIGKILL, _has_spilled_an_answer)
    (trial,) = run.trials.itertuples()
    assert (trial.status, trial.recording) == ("crashed", "events and snapshots")
    kinds = run.events.groupby("request_id")["kind"].agg(list)
    assert kinds["first"][0] == "snapshot"
    assert kinds["first"].count("done") == 1
    assert "never" not in kinds
    assert len(run.invocations) > 0
    before, after = run.requests["pages_before"], run.requests["pages_after"]
    assert before[0] == 0
    assert before.isna().tolist() == after.isna().tolist() == [False, True]
    assert run.requests["evictions_during"].tolist() == [0, pd.NA]


def test_a_dying_engine_leaves_its_last_events(tmp_path):
    plan = Plan(
        releases=(REPORTED,),
        prefix_sharing=("trie",),
        pages=(24,),
        concurrency=(8,),
        repeats=1,
        workload="shared_prefix",
        observe="snapshots",
    )
    run = run_sweep(plan, tmp_path / "run", progress=False)
    assert list(run.trials["status"]) == ["engine_died"]
    (died,) = run.events[run.events["kind"] == "worker_died"].itertuples()
    assert died.message == run.trials["status_detail"][0]
    assert (run.events["kind"] == "failed").any()
    assert "failure" in set(run.snapshots["moment"])


_KERNEL = """
import functools, warnings
import analysis.recording
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
analysis.recording.observe = functools.partial(analysis.recording.observe, max_events=40)
warnings.simplefilter("ignore")
run_sweep(
    Plan(releases=({release!r},), concurrency=(4,), repeats=1, observe="events"),
    {out!r}, runner="kernel", progress=False,
)
"""


def test_in_a_kernel_a_full_recording_is_stored_and_reported(child: ChildRunner, release, tmp_path):
    out = tmp_path / "run"
    ended = child(release, _KERNEL.format(release=release, out=str(out)))
    assert ended.returncode == 0, ended.stderr
    run = load_run(out)
    assert len(run.events) == 40
    (trial,) = run.trials.itertuples()
    assert trial.status == "ok"
    assert trial.status_detail.startswith("The recording was full:")
    assert run.requests["evictions_during"].notna().any()
    assert not (out / "work").exists()
