"""What notebook 01 runs: the sweep, and the prompts of wrong answers again, alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.sweep.plan import Plan


def observed_sweep(
    release: str,
    prefix_sharing: Sequence[str],
    pages: Sequence[int],
    concurrency: Sequence[int],
    **more: Any,
) -> Plan:
    """Return an observed sweep of one release; `more` are further fields of `Plan`."""
    return Plan(
        releases=(release,), prefix_sharing=tuple(prefix_sharing), pages=tuple(pages),
        concurrency=tuple(concurrency), observe="events", **more,
    )  # fmt: skip


def ask_again(
    wrong: pd.DataFrame, log_dir: Path, max_new_tokens: int
) -> list[tuple[str, str, str, Sequence[int]]]:
    """Send the prompts of wrong answers again, each alone on a fresh engine.

    `wrong` is the frame of `plots.wrong_answers`. Each prompt is sent with its own prefix sharing
    and, if that is the trie, without prefix sharing, too. Returns what `plots.asked_again` takes.
    """
    from analysis.engine import Engine, EngineConfig  # needs shortfin

    again: list[tuple[str, str, str, Sequence[int]]] = []
    for case in wrong.to_dict("records"):
        for sharing in dict.fromkeys((case["prefix_sharing"], "none")):
            config = EngineConfig(prefix_sharing=sharing, page_count=int(case["page_count"]))
            with Engine(config, log_dir=log_dir) as engine:
                answer = engine.generate(case["prompt"], max_new_tokens=max_new_tokens)
            again.append((case["prompt"], sharing, answer.text, answer.tokens))
    return again
