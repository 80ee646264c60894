"""A sanitizer for the KV cache: the first step that breaks a rule, live or in a recorded run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from analysis.core.errors import EngineError
from analysis.engine.engine import Engine
from analysis.model import elements
from analysis.recording import observe
from analysis.recording.checking import checksummed
from analysis.recording.recorder import Recorder
from analysis.sanitizer.blind import blind_spots
from analysis.sanitizer.findings import Finding, Findings, Group
from analysis.sanitizer.live import Follower
from analysis.sanitizer.recorded import check_run, check_tables
from analysis.sanitizer.rules import RULES, Rule
from analysis.sanitizer.rules.liveness import REST_S

__all__ = [
    "RULES", "Finding", "Findings", "Group", "Rule", "check_run", "check_tables", "sanitize",
    "settle",
]  # fmt: skip

_SETTLE_S, _SETTLED_S = 2.0, 0.1
_GIVEN_UP_S = 10.0
"""How long the engine is waited for while it has to end a request that its client gave up."""


@contextmanager
def sanitize(
    engine: Engine,
    *,
    stacks: bool = True,
    contents: bool = False,
    checksums: str | None = "sampled",
    max_events: int = 500_000,
) -> Iterator[Findings]:
    """Check a running engine as long as the block lasts, and yield what is found as it is found.

    The engine is observed for it (see `observe`), unless it is already: then that recording is
    followed from its beginning. `stacks` adds the engine's own frames to findings. `contents` also
    looks into the pages that each invocation used, when it has landed, for NaN and infinity, and
    compares copied pages with their source; that costs more.

    `checksums` looks for bytes of pages that change although nothing writes them, and for written
    ones that do not arrive, see `Checksums`. *sampled* follows one page in 32, drawn by chance: a
    wrong byte is in one of them with that probability, and is then found when the next invocation
    that writes to its page lands, or when the page is freed, acquired, found in the trie, let go
    of, or the block ends. *landings* follows all pages, and reads four more an invocation, drawn
    from those that its rows use: of N such pages a wrong byte is found after N / 4 invocations on
    average. *whole* reads all pages before and after every invocation; None reads none. Each costs
    more than the one before it. `Findings.bytes_checked` says what was read. Padding page 0 is not
    judged, nor a change that an invocation under way writes over.

    The cache at rest is checked when the block ends. After `max_events` events or invocations, or
    more bytes than a recording keeps (see `observe`), nothing more is checked, and it says so.

    Raises EngineError if the engine is not running, and with `contents` if its keys and values are
    of a type that cannot be read.
    """
    probe = engine.probe
    watcher = None if probe is None else probe.observer
    if watcher is not None and not isinstance(watcher, Recorder):
        raise EngineError("This engine is watched by somebody else: end that first.")
    # What is on this stack comes last, also when the block ends with an error: then findings are
    # worth most.
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
            if watcher is None
            else nullcontext()
        ) as recording,
    ):
        recorder = watcher if recording is None else recording.recorder
        assert isinstance(recorder, Recorder)
        if contents and engine.probe is not None:
            elements.check(engine.probe.dtype)
        last.callback(setattr, recorder, "check_contents", recorder.check_contents)
        recorder.check_contents |= contents
        last.callback(setattr, recorder, "verifies", recorder.verifies)
        recorder.verifies = True
        model = engine.model.config
        stride, context = model.block_seq_stride, model.max_seq_len
        follower = Follower(recorder, recorder.snapshots[0], stride, context)
        follower.checker.findings.blind = blind_spots(engine.release)
        last.callback(follower.finish)
        with follower:
            with checksummed(recorder, checksums) if recording is None else nullcontext():
                yield follower.checker.findings
                settle(engine, recorder)
            if recording is None and engine.probe is not None:
                recorder.look_again()
                recorder.snapshot("asked", None, 1.0)


def settle(engine: Engine, recorder: Recorder) -> None:
    """Wait until an observed engine is at rest: it has put away what it answered, and does nothing.

    It is waited for up to 2 s; up to 10 s while it has to end a request that its client gave up, or
    until it stands still with it for longer than any request waits for others.
    """
    begun = since = time.monotonic()
    seen: tuple[Any, ...] = ()
    while engine.died is None:
        now, activity = time.monotonic(), recorder.activity
        quiet_s = REST_S + _SETTLED_S if recorder.awaits else _SETTLED_S
        if now - begun > (_GIVEN_UP_S if recorder.awaits else _SETTLE_S):
            return
        busy = recorder.mark() is None or recorder.under_way
        if activity != seen:
            seen, since = activity, now
        elif now - since > quiet_s and (recorder.awaits or not busy):
            return
        time.sleep(0.005)
