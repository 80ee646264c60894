"""A run in the formats of other tools has what the run has, and nothing is half-written."""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from support import ROOT

from analysis.core.errors import RunError
from analysis.report.handover import hand_over
from analysis.report.memory_viz import PAGE_BYTES
from analysis.runs.schema import TABLES
from analysis.runs.store import Run, load_run

(SMALL,) = (ROOT / "data" / "recorded" / "04_first_wrong_step-3.1.0").glob("small-*")
MATRIX = ROOT / "data" / "recorded" / "09_releases-3.1.0" / "matrix"


@pytest.fixture(scope="module")
def run() -> Run:
    return load_run(SMALL)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    out = hand_over(SMALL, tmp_path_factory.mktemp("traces") / "out", "perfetto")
    (file,) = out.iterdir()
    assert file.suffix == ".pftrace"
    read = Trace()
    read.ParseFromString(file.read_bytes())
    return read


def on_tracks(trace: Trace, kind: int) -> dict[str, list]:
    """Return the events of a kind by the name of their track."""
    names = {p.track_descriptor.uuid: p.track_descriptor.name for p in trace.packet
             if p.HasField("track_descriptor")}  # fmt: skip
    found = defaultdict(list)
    for packet in trace.packet:
        if packet.HasField("track_event") and packet.track_event.type == kind:
            found[names[packet.track_event.track_uuid]].append(packet)
    return found


def test_a_trace_has_a_track_for_each_request_page_and_worker(trace: Trace, run: Run) -> None:
    begun = on_tracks(trace, TrackEvent.TYPE_SLICE_BEGIN)
    for request in run.requests.to_dict("records"):
        (packet,) = begun[request["request_id"]]
        assert packet.track_event.name == f"{request['request_id']}: {request['outcome']}"
        assert packet.timestamp == round(request["submitted_s"] * 1e9)
    calls = Counter(run.invocations["thread"].fillna("worker"))
    assert {name: len(begun[name]) for name in calls} == dict(calls)
    held = run.events[run.events["kind"] == "pages_held"]
    for page in {page for pages in held["pages"] for page in pages}:
        owners = {packet.track_event.name for packet in begun[f"page {page}"]}
        assert owners == set(held.loc[held["pages"].map(lambda p, n=page: n in p), "request_id"])


def test_a_trace_has_every_finding_and_the_counters_of_the_snapshots(
    trace: Trace, run: Run
) -> None:
    instants = on_tracks(trace, TrackEvent.TYPE_INSTANT)["findings"]
    wanted = Counter(f"{row.rule} ({row.cause})" for row in run.findings.itertuples())
    assert Counter(packet.track_event.name for packet in instants) == wanted
    counted = on_tracks(trace, TrackEvent.TYPE_COUNTER)
    last = run.snapshots.sort_values("seq").iloc[-1]
    for state in ("free", "live", "cached", "leaked"):
        values = [packet.track_event.counter_value for packet in counted[f"{state} pages"]]
        assert values[0] == (run.trials["page_count"][0] if state == "free" else 0)
        assert values[-1] == last[state]


def test_slices_nest_and_siblings_have_an_order(trace: Trace) -> None:
    tracks = [p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")]
    places = Counter((track.parent_uuid, track.sibling_order_rank) for track in tracks)
    assert set(places.values()) == {1}
    changes = defaultdict(list)
    for packet in trace.packet:
        if packet.track_event.type in (TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END):
            starts = packet.track_event.type == TrackEvent.TYPE_SLICE_BEGIN
            changes[packet.track_event.track_uuid].append((packet.timestamp, starts))
    for each in changes.values():
        depth = 0
        for _, starts in sorted(each):  # of the same time, ends come first
            depth += 1 if starts else -1
            assert depth in (0, 1)


def test_a_memory_snapshot_balances_and_names_requests(run: Run, tmp_path: Path) -> None:
    out = hand_over(SMALL, tmp_path / "out", "memory-viz")
    (file,) = out.iterdir()
    snapshot = pickle.loads(file.read_bytes())
    (segment,), (entries,) = snapshot["segments"], snapshot["device_traces"]
    assert segment["total_size"] == run.trials["page_count"][0] * PAGE_BYTES
    in_use: dict[int, str] = {}
    for entry in entries[1:]:
        if entry["action"] == "alloc":
            assert entry["addr"] not in in_use
        else:
            assert entry["addr"] in in_use
        if entry["action"] == "free_completed":
            del in_use[entry["addr"]]
        else:
            in_use[entry["addr"]] = entry["action"]
    active = [b["address"] for b in segment["blocks"] if b["state"] == "active_allocated"]
    assert sorted(in_use) == sorted(active)
    taken = run.events[run.events["kind"] == "acquire"]
    allocated = [entry for entry in entries[1:] if entry["action"] == "alloc"]
    assert len(allocated) == taken["pages"].map(len).sum()
    asked = {f"request {request_id}" for request_id in taken["request_id"].dropna()}
    assert {entry["frames"][0]["name"] for entry in allocated if entry["frames"]} >= asked
    assert any(len(entry["frames"]) > 2 for entry in allocated)


def test_csv_has_every_row_and_lists_as_json(run: Run, tmp_path: Path) -> None:
    out = hand_over(SMALL, tmp_path / "out", "csv")
    for name in TABLES:
        read = pd.read_csv(out / f"{name}.csv")
        assert list(read.columns) == TABLES[name].names
        assert len(read) == len(getattr(run, name))
    read = pd.read_csv(out / "events.csv")
    pages = read["pages"].dropna().map(json.loads)
    assert pages.map(tuple).tolist() == run.events["pages"].dropna().tolist()


def test_what_cannot_be_handed_over_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"has no trial 'none'\. It has 3\.1\.0"):
        hand_over(SMALL, out, "csv", ["none"])
    (whole,) = load_run(MATRIX).manifest["whole_trials"]
    with pytest.raises(RunError, match=f"light copy .* except for {whole}"):
        hand_over(MATRIX, out, "perfetto", ["3.9.0-none-p24-c1-r0"])
    assert list(tmp_path.iterdir()) == []
    hand_over(MATRIX, out, "perfetto")
    assert [file.stem for file in out.iterdir()] == [whole]
    with pytest.raises(RunError, match="exists"):
        hand_over(MATRIX, out, "csv")
