"""What is kept, and how much: when a recording is opened, full, broken off and closed."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
from growth import grown, kept
from made_engine import MadeEngine, decode, events, recorder_of

from analysis.core.errors import EngineError
from analysis.engine.completion import Completion
from analysis.recording import ObserverWarning, observe
from analysis.recording.recorder import Recorder
from analysis.recording.recording import Recording
from analysis.shortfin.scores import Scores

BOUND, NAMED = 20, 1000


@pytest.fixture
def full() -> Recorder:
    """A recorder that keeps 20 events and as many invocations, and was given 5000 of everything."""
    recorder = recorder_of(MadeEngine(), max_events=BOUND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ObserverWarning)
        for number in range(5000):
            recorder.invocation_ends(
                recorder.invocation_begins("decode", [f"r{number}"]), decode(1), None
            )
            recorder.unused(recorder.reserve())
            recorder.event("free", place=recorder.reserve(), pages=[1])
            recorder.fault(ValueError("planted"))
    return recorder


def test_no_list_of_a_full_recording_grows_further(full: Recorder) -> None:
    assert len(full.events) == len(full.invocations) == BOUND
    assert len(full.unkept) <= NAMED
    assert len(full.skipped) <= 2 * BOUND
    assert len(full.faults) <= NAMED
    assert full.dropped["invocations"] == 5000 - BOUND
    assert full.dropped["faults"] == 5000 - len(full.faults)
    assert not full._open
    assert f"{5000 - BOUND:,} invocations" in str(Recording(full).overflow)


def test_nothing_is_missing_between_the_events_that_a_full_recording_has(full: Recorder) -> None:
    last = max(row[0] for row in full.events)
    taken = {row[0] for row in full.events} | {*full.skipped}
    taken |= {place for row in full.invocations for place in row[9:11]}
    assert {*range(last + 1)} <= taken


def test_one_omission_is_in_the_singular() -> None:
    recorder = recorder_of(MadeEngine(), max_events=1)
    recorder.event("free", pages=[1])
    with pytest.warns(ObserverWarning):
        recorder.event("free", pages=[2])
    output = Recording(recorder)
    assert output.overflow == "The recording was full: 1 event was counted but not kept."
    assert str(output).startswith("1 event, 0 invocations, 0 snapshots")


def observed(engine: Any, raises: bool) -> Recording:
    """Begin an invocation and an operation that do not end, and leave the block."""
    try:
        with observe(engine, memory_every_s=0) as recording:
            recording.recorder.invocation_begins("decode", ["a"])
            recording.recorder.reserve()
            if raises:
                raise KeyError
    except KeyError:
        pass
    return recording


@pytest.mark.parametrize("raises", [False, True])
def test_unfinished_items_are_reported_also_when_the_block_raises(raises: bool) -> None:
    engine = MadeEngine()
    recorder = observed(engine, raises).recorder
    assert len([*events(recorder, "invocation_unfinished")]) == 1
    assert len([*events(recorder, "unfinished")]) == 1
    assert engine.probe is None
    assert not engine.listeners


def test_the_engine_is_detached_if_the_end_of_the_recording_fails(monkeypatch) -> None:
    def broken(self: Recorder) -> None:
        raise RuntimeError

    monkeypatch.setattr(Recorder, "close", broken)
    engine = MadeEngine()
    with pytest.raises(RuntimeError):
        observed(engine, raises=True)
    assert engine.probe is None
    assert not engine.listeners


def test_a_recording_that_was_closed_keeps_nothing_more() -> None:
    recorder = recorder_of(MadeEngine(), snapshots=True)
    place, begun = recorder.reserve(), recorder.invocation_begins("decode", ["a"])
    recorder.finish()
    sizes = Recording(recorder).sizes()

    def go_on() -> None:
        recorder.event("free", pages=[1], place=place)
        recorder.invocation_ends(begun, decode(1), None)
        recorder.invocation_ends(recorder.invocation_begins("decode", ["b"]), decode(1), None)
        recorder.submitted("b", (1, 2))
        recorder.snapshot("asked", None, 0.0)

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    recorder.finish()
    assert Recording(recorder).sizes() == sizes
    assert not recorder.under_way
    assert recorder.snapshots[-1].moment == "asked"


def test_an_operation_that_fails_while_the_recording_ends_raises_its_own_error() -> None:
    engine = MadeEngine()
    recorder = recorder_of(engine)
    recorder.automatic = True
    recorder.begin("acquire", "a")
    engine.probe = None  # as `unwatch` leaves it
    recorder.end(MemoryError("no page"))
    assert [row[5] for row in recorder.events][-1] == "failed"


def test_nothing_but_what_is_recorded_grows_with_the_requests_that_were() -> None:
    recorder, sizes = recorder_of(MadeEngine(), max_events=20), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ObserverWarning)
        for number in range(600):
            request = f"r{number}"
            recorder.submitted(request, (1, 2))
            recorder.begin("acquire", request)
            recorder.holds(request, [1])
            recorder.end(None)
            begun = recorder.invocation_begins("decode", [request])
            recorder.invocation_ends(begun, decode(1), None)
            if number % 2:
                recorder.late(request, "ok")  # before the client's cancellation arrives
            recorder.done(completion(request, "timeout" if number % 3 else "ok"))
            recorder.late(request, "ok")
            recorder.holds(request, ())
            if number + 1 in (200, 600):
                sizes.append(kept(recorder, without=("engine", "unkept")))
    assert grown(*sizes) == {}
    assert not recorder.awaits


def completion(request: str, outcome: str) -> Completion:
    return Completion(
        request_id=request, prompt="", prompt_tokens=(1, 2), tokens=(), text="", outcome=outcome,
        error=None, submitted_s=0.0, latency_s=0.0, ttft_s=None, token_s=(), missing_tokens=0,
    )  # fmt: skip


def wide(kind: str) -> dict[str, Any]:
    """Return the arguments of an invocation of which this is large: its block tables, or its
    scores.
    """
    arrays = decode(1)
    if kind == "block tables":
        return arrays | {"block_tables": ((1, 1000), [1] * 1000)}
    return arrays | {kind: Scores(bytes(2 * 4096), 1, 4096, "float16")}


@pytest.mark.parametrize(
    "what", ["block tables", "scores", "results", "details", "pages", "snapshots"]
)
def test_a_recording_is_full_when_its_bytes_are_used_up(what: str, recwarn: Any) -> None:
    recorder = recorder_of(MadeEngine(), max_bytes=100_000, max_snapshots=1000)
    for number in range(500):
        if what == "details":
            recorder.submitted("a", [number] * 1000)
        elif what == "pages":
            recorder.event("evict", pages=[*range(1000)])
        elif what == "snapshots":
            recorder.snapshot("asked", None, 0.0)
        else:
            begun = recorder.invocation_begins("decode", ["a"])
            recorder.invocation_ends(begun, wide(what), None)
        recorder.at_token("token", "a", 1, None)
    assert "full (100000 bytes)" in str(recwarn.pop(ObserverWarning).message)
    assert 100_000 < recorder.bytes < 110_000
    assert len(recorder.events) + len(recorder.invocations) < 200
    assert recorder.dropped["events"]
    assert "was full" in str(Recording(recorder).overflow)
    assert recorder.snapshots or what != "snapshots"


def test_items_under_way_when_the_recording_becomes_full_are_kept(
    recwarn: Any,
) -> None:
    recorder = recorder_of(MadeEngine(), max_bytes=5000)
    first, second = (recorder.invocation_begins("decode", [request]) for request in "ab")
    recorder.event("submitted", tokens=(1,) * 5000)
    recorder.at_token("token", "a", 1, None)
    recorder.event("free", pages=[1])
    recorder.invocation_ends(first, decode(1), None)
    recorder.invocation_ends(recorder.invocation_begins("decode", ["a"]), decode(1), None)
    recorder.invocation_ends(second, decode(1), None)
    assert "full (5000 bytes)" in str(recwarn.pop(ObserverWarning).message)
    assert [row[5] for row in recorder.events] == ["submitted"]
    assert [row[4] for row in recorder.invocations] == [["a"], ["b"]]
    assert recorder.unkept == [["a"]]


@pytest.mark.parametrize("given", [0, -1, 1.5, "much"])
def test_bytes_that_are_no_number_of_them_are_refused(given: Any) -> None:
    with pytest.raises(EngineError, match="max_bytes must be"):
        recorder_of(MadeEngine(), max_bytes=given)
