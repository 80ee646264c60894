"""What notebook 02 does to one engine: requests, round after round, until its pages are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.snapshots.snapshot import STATES, Snapshot

if TYPE_CHECKING:
    from analysis.engine import Engine

_ROUND = ["round", "asked", "answered", "rejected", "outcomes", *STATES]


@dataclass(frozen=True)
class Step:
    """Requests that one engine received, and its cache before the first and after the last."""

    what: str
    """The requests, as a noun phrase."""
    outcomes: Sequence[str]
    before: Snapshot
    after: Snapshot


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
