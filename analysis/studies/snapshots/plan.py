"""What notebook 02 does to one engine: requests, round after round, until its pages are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.engine import Completion, Engine, EngineConfig
from analysis.recording import FinishedRecording, observe
from analysis.shortfin.config import PREFIX_SHARING
from analysis.snapshots.snapshot import STATES, Snapshot

_ROUND = ["round", "asked", "answered", "rejected", "outcomes", *STATES]


@dataclass(frozen=True)
class Step:
    """Requests that one engine received, and its cache before the first and after the last."""

    what: str
    """The requests, as a noun phrase."""
    outcomes: Sequence[str]
    before: Snapshot
    after: Snapshot


@dataclass(frozen=True)
class Session:
    """Requests that one engine received, and what was recorded of it."""

    answers: dict[str, Completion]
    """By request."""
    recording: FinishedRecording
    last: Snapshot
    """The cache after all requests."""


@dataclass(frozen=True)
class Exhausted:
    """Result of `exhaust_pool` on one engine, and what was recorded of it."""

    rounds: pd.DataFrame
    recording: FinishedRecording


def record(
    config: EngineConfig, log_dir: Path, ask: Callable[[Engine], Iterable[Completion]]
) -> Session:
    """Start an engine, observe it while `ask` sends it requests, and return the session."""
    with Engine(config, log_dir=log_dir) as engine, observe(engine) as recording:
        answers = {one.request_id: one for one in ask(engine)}
        last = engine.cache.snapshot()
    return Session(answers, recording.finished(), last)


def exhaust_pools(
    log_dir: Path, page_count: int, rounds: int, at_once: int
) -> dict[str, Exhausted]:
    """Exhaust the pool of an observed engine of each prefix sharing; see `exhaust_pool`."""
    ended = {}
    for sharing in PREFIX_SHARING:
        config = EngineConfig(prefix_sharing=sharing, page_count=page_count)
        with Engine(config, log_dir=log_dir / sharing) as engine, observe(engine) as recording:
            counted = exhaust_pool(engine, rounds=rounds, at_once=at_once)
        ended[sharing] = Exhausted(counted, recording.finished())
    return ended


def crossing_prompt(number: int) -> str:
    """Return a prompt of 13 tokens, a different one for each number below 900.

    The first three tokens of its answer fit into its first page; the fourth needs a new one.
    """
    return f"{100 + number} {101 + number} {102 + number} "


def exhaust_pool(
    engine: Engine, *, rounds: int, at_once: int = 4, timeout_s: float = 5.0
) -> pd.DataFrame:
    """Send rounds of new requests that share no prefix; count the pages after each round.

    Stops after two rounds in which nothing was answered. Returns a row for each round: round,
    asked, answered and rejected (so far), outcomes (of this round), and the number of free, live,
    cached and leaked pages.
    """
    rows, asked, answered, rejected, silent = [], 0, 0, 0, 0
    for number in range(rounds):
        prompts = [crossing_prompt(asked + row) for row in range(at_once)]
        futures = [engine.submit(prompt, 8, timeout_s) for prompt in prompts]
        outcomes = pd.Series([future.result().outcome for future in futures])
        asked += at_once
        answered += int((outcomes == "ok").sum())
        rejected += int((outcomes == "rejected").sum())
        silent = 0 if (outcomes == "ok").any() else silent + 1
        ended = ", ".join(f"{count} {name}" for name, count in outcomes.value_counts().items())
        counts = engine.cache.snapshot().counts
        rows.append(
            {"round": number, "asked": asked, "answered": answered, "rejected": rejected,
             "outcomes": ended, **counts}
        )  # fmt: skip
        if silent == 2 or engine.died is not None:
            break
    return pd.DataFrame(rows, columns=_ROUND)
