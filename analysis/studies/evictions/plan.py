"""What notebook 03 runs: sweeps under memory pressure, and a small pool filled with duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.sweep.plan import Plan

if TYPE_CHECKING:
    from analysis.engine import Engine

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


def force_duplicate_nodes(engine: Engine, *, rounds: int) -> int:
    """Send the same prompt of two full pages four times at once, a new one every round.

    Each request publishes its own pages for the same tokens, and the trie grows by two pages a
    round until the pool is full and something must be evicted. Stops when the engine dies; returns
    the number of rounds that were sent.
    """
    for number in range(rounds):
        prompt = " ".join(str(100 + 10 * number + step) for step in range(9))[:_PROMPT_TOKENS]
        futures = [engine.submit(prompt, 5, 20.0) for _ in range(4)]
        for future in futures:
            future.result()
        if engine.died is not None:
            return number + 1
    return rounds
