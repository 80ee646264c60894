"""Views without a kernel: a replay shows the state that snapshots have, a table every request."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from typing import Any

import pytest
from support import NEWEST, ROOT, run_python

from analysis.core.errors import RunError
from analysis.jupyter.browse import browse
from analysis.jupyter.frames import FramedPage
from analysis.jupyter.replay import replay
from analysis.recording.replay import Replay
from analysis.runs.schema import FAILURES
from analysis.runs.store import Run, load_run
from analysis.snapshots.snapshot import Snapshot

(SMALL,) = (ROOT / "data" / "recorded" / "04_first_wrong_step-3.1.0").glob("small-*")
RELEASES = ROOT / "data" / "recorded" / "09_releases-3.1.0"


def data_of(view: FramedPage) -> dict[str, Any]:
    (packed,) = re.findall(r'<script id="data" type="text/plain">(.*?)</script>', view.page)
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return data


@pytest.fixture(scope="module")
def run() -> Run:
    return load_run(SMALL)


@pytest.fixture(scope="module")
def data(run: Run) -> dict[str, Any]:
    return data_of(replay(run))


def states_at(data: dict[str, Any], at: int) -> list[str]:
    """Return the state of each page at an event, as the script computes it."""
    shown = ["free"] * data["pages"]
    for page, state, _, begin, end in sorted(data["spans"], key=lambda span: -span[1]):
        if begin <= at < end:
            shown[page] = data["states"][state]
    return shown


def test_pages_and_nodes_are_those_of_a_replay_at_every_tenth_end_of_an_operation(
    run: Run, data: dict[str, Any]
) -> None:
    first = Snapshot.from_row(run.snapshots.sort_values("seq").iloc[0].to_dict())
    events = run.events.sort_values("seq")
    live = Replay(first)
    ends = [n for n, kind in enumerate(events["kind"]) if kind == "operation"]
    for at in [*ends[::10], len(events) - 1]:
        live.apply(events, int(data["seq"][at]))
        held = {page for pages in live.held.values() for page in pages}
        shown = states_at(data, at)
        assert {page for page, state in enumerate(shown) if state == "live"} == held
        assert {page for page, state in enumerate(shown) if state == "cached"} == (
            live.cached() - held
        )
        nodes = {node[2]: node for node in data["nodes"] if node[0] <= at < node[1]}
        assert set(nodes) == set(live.nodes) - {0}
        for number, node in nodes.items():
            known = [
                count for index, count in data["references"].get(str(number), []) if index <= at
            ]
            assert (known or [0])[-1] == live.references.get(number, 0)
            assert node[3] == live.nodes[number].parent


def test_jumps_lead_to_every_finding_and_failure(run: Run, data: dict[str, Any]) -> None:
    seqs = {data["seq"][at] for at in data["jumps"]["finding"]}
    assert seqs >= set(run.findings["seq"].dropna().astype(int)) & set(data["seq"])
    failed = run.requests[run.requests["outcome"].isin(FAILURES)]
    asked = {data["requests"][data["request"][at]] for at in data["jumps"]["failure"]}
    assert asked == set(failed["request_id"]) & {
        data["requests"][n] for n, kind in zip(data["request"], data["kind"], strict=True)
        if data["kinds"][kind] == "done"
    }  # fmt: skip
    assert data["first"] == data["jumps"]["finding"][0]
    assert len(data["calls"]) == len(run.invocations)


def test_the_view_is_an_iframe_that_needs_nothing_else(run: Run) -> None:
    view = replay(run, run.trials["trial_id"][0])
    assert html.unescape(re.findall(r'srcdoc="(.*?)"', view.markup, re.S)[0]) == view.page
    assert "://" not in view.page
    assert 'sandbox="allow-scripts"' in view.markup


def test_what_cannot_be_replayed_is_said() -> None:
    matrix = load_run(RELEASES / "matrix")
    with pytest.raises(RunError, match=r"Give a trial\. It has 3\.1\.0"):
        replay(matrix)
    with pytest.raises(RunError, match=r"has no trial 'x'"):
        replay(matrix, "x")
    with pytest.raises(RunError, match="light copy"):
        replay(matrix, "3.9.0-none-p24-c1-r0")
    assert "Replay of" in replay(matrix, matrix.manifest["whole_trials"][0]).page


_LIVE = """
from analysis import Engine, observe, sanitize
from analysis.jupyter import html_of, replay
with Engine() as engine, observe(engine) as recording, sanitize(engine) as findings:
    engine.generate("1 2 3 ", 3)
    assert "iframe" in html_of(replay(recording, findings=findings))
assert "iframe" in html_of(replay(recording, findings=findings))
"""


def test_a_live_recording_is_replayed_while_it_grows() -> None:
    done = run_python(NEWEST, _LIVE, timeout_s=120)
    assert done.returncode == 0, done.stderr


def test_every_request_can_be_browsed_failed_ones_first(run: Run) -> None:
    data = data_of(browse(run))
    assert len(data["rows"]) == len(run.requests)
    failed = [row["failed"] for row in data["rows"]]
    assert failed == sorted(failed, reverse=True)
    assert sum(failed) == run.requests["outcome"].isin(FAILURES).sum()
    first = data["rows"][0]
    cells = dict(zip(data["columns"], first["cells"], strict=True))
    assert cells["outcome"] == "wrong"
    about = run.findings[run.findings["request_id"] == first["request"]].sort_values("seq")
    assert cells["first finding"] == f"{about['rule'].iloc[0]} ({about['cause'].iloc[0]})"
    assert first["facts"]["prompt"] in set(run.requests["prompt"])
