"""Sweeps whose costs are known: each arm multiplies what an untreated request takes by its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from support import REPORTED
from synthetic import request_row, trial_row

from analysis.runs.store import to_frame
from analysis.studies.cost.measures import ALL
from analysis.treatments import fixes

MIB = 2**20
TOKENS = 15


def treatments_of(arm: str, release: str, sharing: str) -> tuple[str, ...]:
    """Return the treatments that make an arm of this name."""
    if arm == "untreated":
        return ()
    return fixes(release, sharing) if arm == ALL else (arm,)


def cost_run(
    factors: Mapping[str, float],
    *,
    concurrency: Sequence[int] = (4, 8),
    repeats: int = 6,
    noise: float = 0.02,
    seed: int = 0,
    release: str = REPORTED,
    sharing: str = "trie",
    outcomes: Mapping[tuple[str, int], Sequence[str]] | None = None,
    memory: Mapping[str, float] | None = None,
    hits: Mapping[str, int] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return requests and trials: an arm's requests take `factors[arm]` times the untreated ones'.

    `noise` is the standard deviation of the logarithm of a whole trial's pace; `memory` has a
    factor for resident memory, `hits` the cached tokens of 30, and `outcomes` the outcomes of the
    last requests of every client in trials of an arm and repeat. Each client sends two requests,
    the first of which is slow.
    """
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    requests: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for level in concurrency:
            for arm, factor in factors.items():
                name = f"{arm}-{level}-{repeat}".replace(" ", "-")
                pace = factor * level**0.3 * float(np.exp(rng.normal(0, noise)))
                names = treatments_of(arm, release, sharing)
                rss = 200 * MIB * (memory or {}).get(arm, 1.0)
                trials.append(
                    trial_row(
                        trial_id=name,
                        release=release,
                        prefix_sharing=sharing,
                        concurrency=level,
                        repeat=repeat,
                        treatments=list(names),
                        peak_rss_bytes=int(rss),
                    )
                )
                ended = (outcomes or {}).get((arm, repeat), ("ok",) * level)
                for client in range(level):
                    for position in (0, 1):
                        outcome = ended[client % len(ended)] if position else "ok"
                        done = outcome in ("ok", "wrong")
                        slow = 5.0 if position == 0 else 1.0
                        requests.append(
                            request_row(
                                trial_id=name,
                                request_id=f"{name}-{client}-{position}",
                                client=client,
                                position=position,
                                outcome=outcome,
                                prompt_tokens=list(range(30)),
                                tokens=list(range(TOKENS)),
                                submitted_s=position * 10.0,
                                ttft_s=0.02 * pace * slow if done else None,
                                latency_s=(0.02 + 0.01 * (TOKENS - 1)) * pace * slow
                                if done
                                else None,
                                cached_tokens=None if hits is None else hits[arm],
                            )
                        )
    return to_frame("requests", requests), to_frame("trials", trials)
