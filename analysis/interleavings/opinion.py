"""A second opinion on a schedule: the sanitizer's, with its own shadow of the pages and its rules.

It watches the cache by the very hooks by which it watches a live engine. Invocations are told to it
as the engine would have flown them, one request each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.interleavings.examine import Laboratory
from analysis.interleavings.scenarios import SCENARIOS, STRIDE, Schedule, Step, chosen
from analysis.interleavings.stage import Stage
from analysis.recording.recorder import Recorder
from analysis.sanitizer.findings import Findings
from analysis.sanitizer.live import Follower
from analysis.shortfin.cache.driver import Actor
from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.config import Completion

_EVENTS, _SNAPSHOTS = 100_000, 10


def second_opinion(
    scenario: str,
    schedule: Schedule | str,
    prefix_sharing: str = "trie",
    treatments: Sequence[str] = (),
) -> Findings:
    """Carry out a schedule under the eyes of the sanitizer, and return what it finds.

    What the requests have left to do is done afterwards, one request after the other.
    Raises IsolationError if there is no such scenario, or a step is not what its request does then.
    """
    chosen([scenario], prefix_sharing, ())
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    with Laboratory(prefix_sharing, treatments) as lab:
        stage = lab.open(SCENARIOS[scenario])
        try:
            return _Watched(stage).run(schedule)
        finally:
            stage.close()


class _Watched:
    """A stage that a recorder watches."""

    def __init__(self, stage: Stage) -> None:
        self._stage, engine = stage, stage.engine
        self._recorder = Recorder(
            engine,  # type: ignore[arg-type]  # of which it asks the clock and the probe
            snapshots=False,
            stacks=False,
            max_events=_EVENTS,
            max_snapshots=_SNAPSHOTS,
        )
        self._probe: Any = engine.service.probe()
        engine.probe = self._probe

    def run(self, schedule: Schedule) -> Findings:
        recorder, stage = self._recorder, self._stage
        self._probe.attach(recorder)
        try:
            recorder.begins_with(recorder.snapshot("asked", None, 1.0))
            follower = Follower(recorder, recorder.snapshots[0], STRIDE)
            stage.listener, stage.evict_at_end = self._flown, False
            for step in schedule.steps:
                self._step(step)
            for actor in stage.actors.values():
                while 0 < actor.position < len(actor.steps) and not stage.over:
                    self._step(Step(actor.name, actor.steps[actor.position]))
            recorder.snapshot("asked", None, 1.0)
            follower.finish()
            return follower.checker.findings
        finally:
            stage.listener = None
            self._probe.detach()

    def _step(self, step: Step) -> None:
        actor = self._stage.actors[step.request]
        token = CURRENT_REQUEST.set(actor.name)
        try:
            if not actor.position:
                self._recorder.submitted(actor.name, actor.tokens)
                actor.introduce(self._probe)
            self._stage.run(Schedule((step,)))
            if actor.over:
                actor.take_leave(self._probe)
                self._recorder.holds(actor.name, ())
                self._recorder.done(_completion(actor))
        finally:
            CURRENT_REQUEST.reset(token)

    def _flown(self, name: str, tokens: list[int], table: list[int], start: int) -> None:
        recorder, length = self._recorder, len(tokens)
        recorder.holds(name, self._stage.actors[name].holds())
        decode = start > 0
        blocks = -(-length // STRIDE)
        padded = [*table, *[0] * blocks][:blocks]
        flown = tokens[start:] if decode else [*tokens, *[0] * (blocks * STRIDE - length)]
        arrays: dict[str, Any] = {
            "tokens": ((1, len(flown)), flown),
            "seq_lens": ((1,), [length]),
            "block_tables": ((1, blocks), padded),
        }
        if decode:
            arrays["start_positions"] = ((1,), [start])
            recorder.token(name, tokens[-1], first=False)
        invocation = recorder.invocation_begins("decode" if decode else "prefill", [name])
        recorder.invocation_ends(invocation, arrays, None)


def _completion(actor: Actor) -> Completion:
    return Completion(
        request_id=actor.name, prompt="", prompt_tokens=(), tokens=(), text="",
        outcome="error" if actor.failed else "ok", error=None, submitted_s=0.0, latency_s=0.0,
        ttft_s=None, token_s=(),
    )  # fmt: skip
