"""Cross-check of a schedule with the sanitizer, on the same cache.

The sanitizer uses the same hooks as on a live engine, and gets each invocation as the engine would
execute it, with one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from analysis.engine.completion import Completion
from analysis.interleavings.examine import HarnessFactory
from analysis.interleavings.harness import CacheHarness
from analysis.interleavings.scenarios import SCENARIOS, STRIDE, Schedule, Step, select
from analysis.recording.recorder import Recorder
from analysis.sanitizer.findings import Findings
from analysis.sanitizer.live import Follower
from analysis.shortfin.cache.driver import RequestDriver
from analysis.shortfin.cache.probe import CURRENT_REQUEST


def cross_check(
    scenario: str,
    schedule: Schedule | str,
    prefix_sharing: str = "trie",
    treatments: Sequence[str] = (),
) -> Findings:
    """Run a schedule with the sanitizer enabled, and return its findings.

    The remaining operations are run afterwards, one request after the other. Raises IsolationError
    for an unknown scenario, or a step that is not its request's next one.
    """
    select([scenario], prefix_sharing, ())
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    with (
        HarnessFactory(prefix_sharing, treatments) as factory,
        closing(factory.open(SCENARIOS[scenario])) as harness,
    ):
        return _Sanitized(harness).run(schedule)


class _Sanitized:
    """A harness with a recorder."""

    def __init__(self, harness: CacheHarness) -> None:
        self._harness, engine = harness, harness.engine
        self._recorder = Recorder(
            engine,  # type: ignore[arg-type]  # only its clock and probe are used
            snapshots=False,
            stacks=False,
            max_events=100_000,
            max_snapshots=10,
        )
        self._probe: Any = engine.service.probe()
        engine.probe = self._probe

    def run(self, schedule: Schedule) -> Findings:
        recorder, harness = self._recorder, self._harness
        self._probe.attach(recorder)
        try:
            recorder.begins_with(recorder.snapshot("asked", None, 1.0))
            follower = Follower(recorder, recorder.snapshots[0], STRIDE)
            harness.on_invocation, harness.evict_at_end = self._invocation, False
            for step in schedule.steps:
                self._step(step)
            for driver in harness.drivers.values():
                while driver.position and not driver.over and not harness.over:
                    self._step(Step(driver.name, driver.operations[driver.position]))
            recorder.snapshot("asked", None, 1.0)
            follower.finish()
            return follower.checker.findings
        finally:
            harness.on_invocation = None
            self._probe.detach()

    def _step(self, step: Step) -> None:
        driver = self._harness.drivers[step.request]
        token = CURRENT_REQUEST.set(driver.name)
        try:
            if not driver.position:
                self._recorder.submitted(driver.name, driver.tokens)
                driver.register(self._probe)
            self._harness.run(Schedule((step,)))
            if driver.over:
                self._probe.forget(driver.name)
                self._recorder.holds(driver.name, ())
                self._recorder.done(_completion(driver))
        finally:
            CURRENT_REQUEST.reset(token)

    def _invocation(self, name: str, tokens: list[int], table: list[int], start: int) -> None:
        recorder, length = self._recorder, len(tokens)
        recorder.holds(name, self._harness.drivers[name].holds())
        decode = start > 0
        blocks = -(-length // STRIDE)
        padded = [*table, *[0] * blocks][:blocks]
        given = tokens[start:] if decode else [*tokens, *[0] * (blocks * STRIDE - length)]
        arrays: dict[str, Any] = {
            "tokens": ((1, len(given)), given),
            "seq_lens": ((1,), [length]),
            "block_tables": ((1, blocks), padded),
        }
        if decode:
            arrays["start_positions"] = ((1,), [start])
            recorder.token(name, tokens[-1], first=False)
        invocation = recorder.invocation_begins("decode" if decode else "prefill", [name])
        recorder.invocation_ends(invocation, arrays, None)


def _completion(driver: RequestDriver) -> Completion:
    return Completion(
        request_id=driver.name, prompt="", prompt_tokens=(), tokens=(), text="",
        outcome="error" if driver.failed else "ok", error=None, submitted_s=0.0, latency_s=0.0,
        ttft_s=None, token_s=(),
    )  # fmt: skip
