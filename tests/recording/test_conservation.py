"""Pages are conserved and events are complete: real engines, random workloads."""

from __future__ import annotations

import json
import select
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import CHILD_ENVIRONMENT, RELEASES, ROOT, has, preparation

from analysis.shortfin.environments import python_of

# A child of the release's environment, where Hypothesis is not installed: it reads prompts,
# a line each, and answers with what it found wrong in the recording.
SERVER = """
import json, sys
from analysis.engine import Engine, EngineConfig
from analysis.recording import observe
from analysis.recording.replay import Replay, differences

def check(recording, pages):
    wrong = list(recording.faults)
    events, taken = recording.events, recording.taken
    replay = Replay(taken[0])
    for seen in taken:
        if sum(seen.counts.values()) != pages or len(seen.states) != pages:
            wrong.append(f"{seen.counts} are not {pages} pages")
        if seen.consistent:
            replayed = replay.apply(events, seen.seq).snapshot()
            wrong += [f"{seen.moment} at {seen.seq}: {text}" for text in differences(
                replayed, seen)]
            if replayed.counts != seen.counts:
                wrong.append(f"counts: {replayed.counts} replayed, {seen.counts} seen")
    if not events["seq"].is_unique or not events["seq"].is_monotonic_increasing:
        wrong.append("events have no order")
    return wrong

engine, setting, spent = None, None, False
for line in sys.stdin:
    sharing, pages, workload = json.loads(line)
    if spent or setting != (sharing, pages):
        if engine is not None:
            engine.close()
        setting = sharing, pages
        engine = Engine(EngineConfig(prefix_sharing=sharing, page_count=pages)).start()
    outcomes = []
    with observe(engine) as recording:
        for asked in workload:
            futures = [engine.submit(prompt, tokens, timeout_s=2) for prompt, tokens in asked]
            outcomes += [future.result(timeout=30).outcome for future in futures]
    # One that leaked, or in which something hangs, has shown what it can: the next gets a new one.
    leaked = recording.taken[-1].counts["leaked"]
    spent = bool(engine.died) or leaked > pages // 3 or "timeout" in outcomes
    kinds = recording.events["kind"].value_counts().to_dict()
    inconsistent = sum(not snapshot.consistent for snapshot in recording.taken)
    print(json.dumps({"wrong": check(recording, pages), "outcomes": outcomes, "kinds": kinds,
                      "snapshots": len(recording.taken), "inconsistent": inconsistent}))
    sys.stdout.flush()
if engine is not None:
    engine.close()
"""
HEADS = (
    "",
    "1 2 3 4 5 6 7 8 9 10 ",
    "5 10 15 20 25 30 35 40 45 50 55 60 65 70 75 80 85 ",
)
requests = st.tuples(
    st.builds(lambda head, start: f"{head}{start} ", st.sampled_from(HEADS), st.integers(1, 60)),
    st.integers(1, 20),
)
workloads = st.lists(st.lists(requests, min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.fixture(scope="module", params=RELEASES)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    release = request.param
    source = preparation(release) + SERVER
    process = subprocess.Popen(
        [str(python_of(release)), "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=CHILD_ENVIRONMENT,
    )
    try:
        with process:
            yield release, process
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=30) == 0
    finally:
        process.kill()


@pytest.mark.parametrize("sharing", ["none", "trie"])
@pytest.mark.parametrize("pages", [256, 24])
def test_every_page_is_in_one_state_and_events_lead_from_snapshot_to_snapshot(
    server: tuple[str, subprocess.Popen[str]], sharing: str, pages: int
) -> None:
    release, process = server
    seen: Counter[str] = Counter()

    @settings(
        max_examples=10, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(workloads)
    def conserved(workload: list[list[tuple[str, int]]]) -> None:
        print(json.dumps([sharing, pages, workload]), file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], 120)
        assert ready, "no answer within 120 s"
        output = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        seen.update(output["kinds"])
        seen.update(snapshots=output["snapshots"], inconsistent=output["inconsistent"])
        seen.update(output["outcomes"])
        assert output["wrong"] == []

    conserved()
    assert seen["ok"] > 0
    assert seen["acquire"] > 0
    assert seen["pages_held"] > 0
    if sharing == "trie" and has(release, "prefix-sharing"):
        assert seen["create"] > 0
        assert seen["reference"] > 0
    # An operation may be under way for longer than an automatic snapshot waits, but seldom.
    assert seen["inconsistent"] <= seen["snapshots"] // 10
