"""What notebook 03 runs: sweeps under memory pressure, and a small pool filled with duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.engine import Engine, EngineConfig, EngineDeath
from analysis.recording import FinishedRecording, observe
from analysis.sweep.plan import Plan

_PROMPT_TOKENS = 32
"""Two full pages."""


def sweeps(
    release: str,
    prefix_sharing: Sequence[str],
    pages: Sequence[int],
    concurrency: Sequence[int],
    rounds: Sequence[int],
    repeats: int,
    seed: int = 0,
) -> list[Plan]:
    """Return one observed sweep for each number of rounds; each round adds prefix families."""
    return [
        Plan(
            releases=(release,), prefix_sharing=tuple(prefix_sharing), pages=tuple(pages),
            concurrency=tuple(concurrency), workload="shared_prefix", rounds=number,
            repeats=repeats, seed=seed, observe="events",
        )
        for number in rounds
    ]  # fmt: skip


@dataclass(frozen=True)
class Crowd:
    """Result of `force_duplicate_nodes` on one engine, and what was recorded of it."""

    rounds: int
    death: EngineDeath | None
    recording: FinishedRecording


def crowded(config: EngineConfig, log_dir: Path, rounds: int) -> Crowd:
    """Force duplicate nodes on an engine that is observed with stacks."""
    with Engine(config, log_dir=log_dir) as engine:
        with observe(engine, stacks=True) as recording:
            survived = force_duplicate_nodes(engine, rounds=rounds)
        return Crowd(survived, engine.died, recording.finished())


def force_duplicate_nodes(engine: Engine, *, rounds: int) -> int:
    """Send the same prompt of two full pages four times at once, a new one every round.

    Each request publishes its own pages for the same tokens, and the trie grows by two pages a
    round until the pool is full and something must be evicted. Stops when the engine dies; returns
    the number of rounds that were sent.
    """
    for number in range(rounds):
        prompt = " ".join(str(100 + 10 * number + step) for step in range(9))[:_PROMPT_TOKENS]
        futures = [
            engine.submit(prompt, 5, 20.0, request_id=f"round-{number}-{row}") for row in range(4)
        ]
        for future in futures:
            future.result()
        if engine.died is not None:
            return number + 1
    return rounds
