"""In which order a trial ends: what an engine does without its treatments is found in no arm."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_engine import MadeEngine, decode

import analysis.engine
import analysis.sanitizer
from analysis.engine.completion import Completion
from analysis.recording.stream import read_stream
from analysis.shortfin.releases import reported
from analysis.sweep import trial
from analysis.treatments.faults import FAULTS, Fault
from analysis.workloads.workload import Request, Workload

WORKLOAD = Workload("given up", (Request("r0", "1 2 3 "),))


class Busy(MadeEngine):
    """An engine that goes on with a request that its client gave up: for 5 invocations, or for
    ever.
    """

    release, device, log = reported(), "made up", ""
    model = SimpleNamespace(config=SimpleNamespace(block_seq_stride=16))

    def __init__(self, invocations: int | None) -> None:
        super().__init__()
        self.invocations, self.executed = invocations, 0
        self.treated, self.over, self.asked = False, threading.Event(), []  # type: ignore[var-annotated]
        self.worker = threading.Thread(target=self.work)

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.worker.join()

    def submit(self, *asked: Any) -> Future[Completion]:
        recorder = self.probe.observer
        recorder.submitted("r0", (1, 2, 3))
        given_up = Completion("r0", "", (), (), "", "timeout", None, 0.0, 1.0, None, ())
        recorder.done(given_up)
        self.worker.start()
        future: Future[Completion] = Future()
        future.set_result(given_up)
        return future

    def work(self) -> None:
        recorder = self.probe.observer
        while self.executed != self.invocations and not self.over.is_set():
            name = "treated" if self.treated else "untreated"
            invocation = recorder.invocation_begins("decode", [name])
            self.over.wait(0.02)
            recorder.invocation_ends(invocation, decode(1), None)
            self.executed += 1
        recorder.late("r0", "ok")

    def generate(self, *asked: Any, **options: Any) -> Any:
        self.asked.append(self.treated)
        if self.probe is not None:
            self.probe.observer.submitted("asked once more", (1,))
        return SimpleNamespace(outcome="ok")


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """Run a trial with an engine that is made up; return it, its facts and what was recorded."""

    def run(invocations: int | None, fault: Fault | None = None) -> tuple[Busy, Any, Any]:
        engine = Busy(invocations)

        @contextmanager
        def treated(engine: Any, spec: Any) -> Iterator[list[Fault]]:
            engine.treated = True
            yield [fault] if fault else []
            engine.treated = False
            # Putting everything back takes a while, in which the engine goes on if it has to.
            until = engine.executed + 3
            while engine.worker.is_alive() and engine.executed < until:
                engine.worker.join(0.01)

        monkeypatch.setattr(analysis.engine, "Engine", lambda *asked, **options: engine)
        monkeypatch.setattr(
            analysis.engine, "EngineConfig", SimpleNamespace(from_json=lambda config: config)
        )
        monkeypatch.setattr(trial, "_treated", treated)
        spec = trial.specification({}, WORKLOAD, 1, 1.0, observe="events", trial_id="c")
        return engine, trial.ask(spec, tmp_path), read_stream(Path(tmp_path))

    return run


def executed_requests(recorded: Any) -> list[str]:
    return [name for names in recorded["invocations"]["request_ids"].to_pylist() for name in names]


def kinds(recorded: Any) -> list[str]:
    listed: list[str] = recorded["events"]["kind"].to_pylist()
    return listed


def test_treatments_end_when_the_engine_has_ended_what_its_clients_gave_up(ended) -> None:
    _, _, recorded = ended(invocations=5)
    assert executed_requests(recorded) == ["treated"] * 5
    assert kinds(recorded).count("late") == 1
    assert "invocation_unfinished" not in kinds(recorded)


def test_what_an_engine_does_without_its_treatments_is_not_recorded(ended, monkeypatch) -> None:
    monkeypatch.setattr(analysis.sanitizer, "_GIVEN_UP_S", 0.1)
    engine, _, recorded = ended(invocations=None)
    assert set(executed_requests(recorded)) == {"treated"}
    assert engine.executed > len(executed_requests(recorded))
    assert recorded["snapshots"]["moment"].to_pylist() == ["asked", "asked"]


def test_whether_it_still_answers_is_asked_with_treatments_and_not_recorded(ended) -> None:
    fault = FAULTS["fault:lost-completion"]()
    engine, facts, recorded = ended(invocations=5, fault=fault)
    assert engine.asked == [True]
    assert "asked once more" not in recorded["events"]["request_id"].to_pylist()
    # Nor is a fault injected into that request, which was never injected in the workload.
    assert facts["injected"] is None
    assert not fault.targets("asked once more")
