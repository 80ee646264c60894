"""A sanitizer for the KV cache: the first step that breaks a rule, live or in a recorded run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import ModuleType
from typing import Any

from analysis.engine.engine import Engine
from analysis.errors import EngineError
from analysis.observe import observe
from analysis.observe.recorder import Recorder
from analysis.sanitize.blind import blind_spots
from analysis.sanitize.findings import Finding, Findings, Group
from analysis.sanitize.live import Follower
from analysis.sanitize.recorded import check_run, check_tables
from analysis.sanitize.rules import RULES, Rule

__all__ = [
    "RULES", "Finding", "Findings", "Group", "Rule", "check_run", "check_tables", "sanitize",
]  # fmt: skip

_SETTLE_S, _SETTLED_S = 2.0, 0.1


@contextmanager
def sanitize(
    engine: Engine,
    *,
    stacks: bool = True,
    contents: bool = False,
    max_events: int = 500_000,
) -> Iterator[Findings]:
    """Check a running engine as long as the block lasts, and yield what is found as it is found.

    The engine is observed for it (see `observe`), unless it is already: then that recording is
    followed from its beginning. `stacks` adds the engine's own frames to findings. `contents` also
    looks into the pages that each flight used, when it has landed, for NaN and infinity, and
    compares copied pages with their source; that costs more. The cache at rest is checked when the
    block ends. After `max_events` events or flights nothing more is checked, and it says so.

    Raises EngineError if the engine is not running.
    """
    probe = engine.probe
    watcher = None if probe is None else probe.watcher
    if watcher is not None and not isinstance(watcher, Recorder):
        raise EngineError("This engine is watched by somebody else: end that first.")
    # What is on this stack comes last, also when the block ends with an error: then findings are
    # worth most.
    with (
        ExitStack() as last,
        (
            observe(engine, snapshots=False, stacks=stacks, memory_every_s=0, max_events=max_events)
            if watcher is None
            else nullcontext()
        ) as recording,
    ):
        recorder = watcher if recording is None else recording.recorder
        assert isinstance(recorder, Recorder)
        last.callback(setattr, recorder, "look_inside", recorder.look_inside)
        recorder.look_inside |= contents
        last.callback(setattr, recorder, "verifies", recorder.verifies)
        recorder.verifies = True
        stride = engine.model.config.block_seq_stride
        follower = Follower(recorder, recorder.snapshots[0], stride)
        follower.checker.findings.blind = blind_spots(engine.release)
        last.callback(follower.finish)
        with follower:
            yield follower.checker.findings
            _settle(engine, recorder)
            if recording is None and engine.probe is not None:
                recorder.snapshot("asked", None, 1.0)


def _settle(engine: Engine, recorder: Recorder) -> None:
    """Wait until the engine has put away what it answered, so that it is at rest."""
    deadline = time.monotonic() + _SETTLE_S
    seen, since = -1, time.monotonic()
    while time.monotonic() < deadline and engine.died is None:
        count = len(recorder.events)
        if count != seen:
            seen, since = count, time.monotonic()
        elif time.monotonic() - since > _SETTLED_S and recorder.mark() is not None:
            return
        time.sleep(0.005)


class _Room(ModuleType):
    """Lets `from analysis import sanitize` be called, whoever imported this room before."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return sanitize(*args, **options)


sys.modules[__name__].__class__ = _Room
