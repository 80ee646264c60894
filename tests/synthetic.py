"""Runs with a known truth, built through the schema: data for statistics, no engine involved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from support import NEWEST, REPORTED

from analysis.runs.store import Run, to_frame


def trial_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_id": "synthetic",
        "trial_id": "c",
        "release": REPORTED,
        "device": "local-task",
        "prefix_sharing": "none",
        "page_count": 256,
        "batch_sizes": [4],
        "concurrency": 1,
        "repeat": 0,
        "workload": "mixed",
        "treatments": [],
        "options": "{}",
        "page_tokens": 4,
        "seed": 0,
        "status": "ok",
        "duration_s": 3.5,
        "target": "engine",
    }
    return {**row, **changes}


def request_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "request_id": "r",
        "trial_id": "c",
        "client": 0,
        "position": 0,
        "family": "up",
        "prompt": "1 2 3 4 5 ",
        "expected_text": "6 7 8 9 10 11 12",
        "reference_tokens": [6, 7, 8, 9],
        "text": "6 7 8 9 10 11 12",
        "tokens": [6, 7, 8, 9],
        "outcome": "ok",
        "submitted_s": 0.5,
        "latency_s": 1.0,
        "ttft_s": 0.25,
    }
    return {**row, **changes}


def make_run(
    outcomes: Mapping[tuple[str, str, int], Mapping[str, int]],
    *,
    trials: int = 4,
    status: Mapping[tuple[str, str, int], str] | None = None,
    spread: bool = True,
    **columns: Any,
) -> Run:
    """Return a run: (release, prefix sharing, concurrency) -> how many requests ended how.

    The requests of a configuration are dealt out to `trials` trials in turn; `spread=False` puts
    all that is not ok into as few of them as possible.
    """
    rng = np.random.default_rng(0)
    trial_rows, request_rows = [], []
    for (release, prefix, level), kinds in outcomes.items():
        names = [f"{release}-{prefix}-{level}-{repeat}" for repeat in range(trials)]
        for repeat, name in enumerate(names):
            bad = (status or {}).get((release, prefix, level)) if repeat == 0 else None
            trial_rows.append(
                trial_row(
                    trial_id=name,
                    release=release,
                    prefix_sharing=prefix,
                    concurrency=level,
                    repeat=repeat,
                    status=bad or "ok",
                    status_detail=f"The engine {bad} in a test." if bad else None,
                    **columns,
                )
            )
        flat = [kind for kind, number in kinds.items() for _ in range(number)]
        per_trial = -(-len(flat) // trials) if flat else 1
        for index, kind in enumerate(flat):
            name = names[index % trials if spread else index // per_trial]
            done = kind in ("ok", "wrong")
            ttft = float(rng.lognormal(-2.0, 0.4)) * level**0.5
            request_rows.append(
                request_row(
                    trial_id=name,
                    request_id=f"r{index}",
                    family=("up", "down", "recall")[index % 3],
                    prompt=f"{index} {index + 1} {index + 2} ",
                    outcome=kind,
                    text="6 7 8 1 1 1 1 1" if kind == "wrong" else "6 7 8 9 10 11 12",
                    tokens=[6, 7, 1, 1] if kind == "wrong" else [6, 7, 8, 9],
                    first_divergence=2 if kind == "wrong" else None,
                    latency_s=ttft * 6 if done else None,
                    ttft_s=ttft if done else None,
                )
            )
    return Run(
        path=Path("synthetic"),
        manifest={},
        trials=to_frame("trials", trial_rows),
        requests=to_frame("requests", request_rows),
        **{name: to_frame(name, []) for name in ("invocations", "events", "snapshots", "findings")},
    )


def reported_pattern() -> Run:
    """Return what was reported: right at 1 and 2, wrong from 4 on; the newest only rejects."""
    return make_run(
        {
            (REPORTED, "none", 1): {"ok": 24},
            (REPORTED, "none", 2): {"ok": 24},
            (REPORTED, "none", 4): {"ok": 36, "wrong": 12},
            (REPORTED, "none", 8): {"ok": 60, "wrong": 30, "engine_died": 4, "empty": 2},
            (REPORTED, "trie", 1): {"ok": 24},
            (REPORTED, "trie", 2): {"ok": 12, "wrong": 12},
            (REPORTED, "trie", 4): {"ok": 24, "wrong": 20, "timeout": 4},
            (REPORTED, "trie", 8): {"ok": 40, "wrong": 50, "error": 6},
            (NEWEST, "none", 1): {"ok": 24},
            (NEWEST, "none", 2): {"ok": 24},
            (NEWEST, "none", 4): {"ok": 48},
            (NEWEST, "none", 8): {"ok": 48, "rejected": 48},
        },
        status={(REPORTED, "trie", 8): "engine_died"},
    )
