"""A sanitizer for the KV cache: finds the first step that violates a rule, live or recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

from analysis.core.errors import EngineError
from analysis.core.spans import spanning
from analysis.engine.engine import Engine
from analysis.model import elements
from analysis.recording import checksummed, observe
from analysis.recording.recorder import Recorder
from analysis.sanitizer.findings import Finding, Findings, Group
from analysis.sanitizer.live import Follower
from analysis.sanitizer.recorded import check_run, check_tables
from analysis.sanitizer.rules import RULES, Rule, limits_of
from analysis.sanitizer.rules.liveness import QUIET_S

__all__ = [
    "RULES", "Finding", "Findings", "Group", "Rule", "check_run", "check_tables", "sanitize",
    "settle",
]  # fmt: skip

_SETTLE_S, _SETTLED_S = 2.0, 0.1
_GIVEN_UP_S = 10.0
"""Longest wait for the engine to end a request that its client gave up, in seconds."""


@spanning
def sanitize(
    engine: Engine,
    *,
    stacks: bool = True,
    contents: bool = False,
    checksums: str | None = "sampled",
    max_events: int = 500_000,
) -> Iterator[Findings]:
    """Check a running engine during the block, and yield the findings, updated live.

    The engine is recorded (see `observe`). If it is already being recorded, that recording is
    checked from its beginning. The quiescent cache is checked at the end of the block.

    Parameters
    ----------
    engine
        A running engine.
    stacks
        Add the engine's stacks to findings.
    contents
        Also search the pages of each finished invocation for NaN and infinity, and compare copied
        pages with their source. This costs more.
    checksums
        Which page bytes are read, to find changes without a write and writes that are lost (see
        `Checksums`), from cheap to costly:

        - None: no bytes.
        - *sampled*: one page in 32, drawn at random. A wrong byte in such a page is found when the
          next invocation that writes to the page finishes, when the page is freed, acquired, found
          in the trie or dropped, or at the end.
        - *landings*: all pages in the same way, and after each invocation 4 pages drawn from those
          of its rows. A wrong byte in one of N such pages is found after N / 4 invocations on
          average.
        - *whole*: all pages before and after every invocation.

        `Findings.bytes_checked` describes what was read. Not checked: padding page 0, and changes
        that an invocation overwrites.
    max_events
        Checking stops after this many events or invocations, or when the recording is full; a note
        is added.

    Raises
    ------
    EngineError
        If the engine is not running, or if `contents` is set and the data type of the cache cannot
        be read.

    """
    probe = engine.probe
    observer = None if probe is None else probe.observer
    if observer is not None and not isinstance(observer, Recorder):
        raise EngineError("Another observer is attached to this engine. End it first.")
    # These callbacks run last, also after an error in the block.
    with (
        ExitStack() as last,
        (
            observe(
                engine,
                snapshots=False,
                stacks=stacks,
                memory_every_s=0,
                max_events=max_events,
                checksums=checksums,
            )
            if observer is None
            else nullcontext()
        ) as recording,
    ):
        recorder = observer if recording is None else recording.recorder
        assert isinstance(recorder, Recorder)
        if contents and engine.probe is not None:
            elements.check(engine.probe.dtype)
        last.callback(setattr, recorder, "check_contents", recorder.check_contents)
        recorder.check_contents |= contents
        last.callback(setattr, recorder, "verifies", recorder.verifies)
        recorder.verifies = True
        model = engine.model.config
        follower = Follower(
            recorder, recorder.snapshots[0], model.block_seq_stride, model.max_seq_len
        )
        follower.checker.findings.limits = limits_of(engine.release)
        last.callback(follower.finish)
        with follower.following():
            with checksummed(recorder, checksums) if recording is None else nullcontext():
                yield follower.checker.findings
                settle(engine, recorder)
            if recording is None and engine.probe is not None:
                recorder.look_again()
                recorder.snapshot("asked", None, 1.0)


def settle(engine: Engine, recorder: Recorder) -> None:
    """Wait until a recorded engine is idle, for up to 2 s.

    If a client gave up a request that the engine has not ended, wait up to 10 s, or until the
    engine has made no progress for so long that it counts as stuck.
    """
    begun = since = time.monotonic()
    seen: tuple[Any, ...] = ()
    while engine.died is None:
        now, activity = time.monotonic(), recorder.activity
        quiet_s = QUIET_S + _SETTLED_S if recorder.awaits else _SETTLED_S
        if now - begun > (_GIVEN_UP_S if recorder.awaits else _SETTLE_S):
            return
        busy = recorder.mark() is None or recorder.under_way
        if activity != seen:
            seen, since = activity, now
        elif now - since > quiet_s and (recorder.awaits or not busy):
            return
        time.sleep(0.005)
