"""The sanitizer around real engines: whatever becomes of the block, of the engine, of others."""

from __future__ import annotations

from support import REPORTED, ChildRunner

_ASK = """
from analysis.core.errors import EngineError
from analysis.recording import observe
from analysis.sanitizer import sanitize
from analysis.treatments import treat
from analysis.workloads.named import make_workload

def ask(engine, count=4, **options):
    return engine.run(make_workload("mixed", count=count, seed=3), concurrency=4, **options)
"""


def test_findings_outlive_an_error_and_an_observer_sees_the_same(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        _ASK
        + """
engine = Engine(EngineConfig(page_count=256))
try:
    with sanitize(engine):
        pass
except EngineError as error:
    stopped = str(error)
with engine:
    fault = "fault:seq-len-short"
    try:
        with sanitize(engine) as findings, treat(engine, fault):
            ask(engine)
            raise KeyError
    except KeyError:
        after_error = findings.group("seq-len-mismatch", "underread") is not None
    with observe(engine) as recording:
        with sanitize(engine) as within, treat(engine, fault):
            ask(engine)
        seen = within.group("seq-len-mismatch", "underread") is not None
        ask(engine)
        invocations = len(recording.invocations)
    with sanitize(engine) as idle:
        pass
    say([stopped, after_error, seen, within.invocations, invocations, idle.invocations,
         engine.probe is None, recording.faults])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stopped, after_error, seen, checked, invocations, idle, detached, faults = done.reply
    assert "not running" in stopped
    assert after_error
    assert seen
    assert 0 < checked < invocations
    assert idle == 0
    assert detached
    assert faults == []


def test_the_state_of_unanswered_requests_is_reported(child: ChildRunner) -> None:
    done = child(
        REPORTED,
        _ASK
        + """
with Engine(EngineConfig(page_count=256)) as engine:
    with sanitize(engine) as findings, treat(engine, "fault:lost-completion"):
        ask(engine, timeout_s=3)
    lost = findings.group("stuck-request", "lost-wakeup")
# An engine whose batcher takes requests and boards none.
with Engine(EngineConfig(page_count=256)) as engine:
    batcher = engine.service.native.batcher
    batcher.board_flights, before = (lambda: None), batcher.board_flights
    with sanitize(engine) as stuck_findings:
        ask(engine, timeout_s=2)
    batcher.board_flights = before
    stuck = stuck_findings.group("stuck-request", "batcher-stalled")
say([lost and [lost.count, lost.first.text], stuck and
     [stuck.count, stuck.first.text, len((stuck.first.other_stack or "").splitlines())]])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lost, stuck = done.reply
    assert lost is not None
    assert lost[0] == 1
    assert "no step is pending for it" in lost[1]
    assert stuck is not None
    assert stuck[0] == 4
    assert "waits for a prefill" in stuck[1]
    assert stuck[2] > 3  # a line for every thread
