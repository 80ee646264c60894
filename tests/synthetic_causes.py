"""Trials of hypotheses whose truth is known, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from support import REPORTED
from synthetic import request_row, trial_row

from analysis.runs.schema import FAILURES
from analysis.runs.store import to_frame
from analysis.sanitizer.recorded import Control
from analysis.studies.causes import Verdict, applicable, arms, decide, measure
from analysis.studies.causes.hypotheses import Hypothesis, Names

TRIED = ["correct-seq-lens", "copy-tokens", "lock-cache", "big-pool"]
Truth = Callable[[Sequence[str]], float]
"""The true failure rate of a set of treatments."""


def tried(
    truth: Truth,
    *,
    sharing: str = "trie",
    trials: int = 16,
    requests: int = 20,
    among: Sequence[str] = TRIED,
    outcome: str = "wrong",
    seed: int = 0,
) -> tuple[list[Verdict], dict[str, pd.DataFrame]]:
    rng = np.random.default_rng(seed)
    hypotheses = applicable(REPORTED, sharing, among)
    trial_rows, request_rows, findings = [], [], []
    for number, names in enumerate(arms(hypotheses, REPORTED, sharing)):
        rate = truth(names)
        for repeat in range(trials):
            trial_id = f"c{number}-{repeat}"
            changes: dict[str, Any] = {"trial_id": trial_id, "treatments": list(names)}
            trial_rows.append(
                trial_row(**changes, prefix_sharing=sharing, concurrency=8, repeat=repeat)
            )
            for request, drawn in enumerate(rng.random(requests)):
                failed = bool(drawn < rate)
                request_rows.append(
                    request_row(
                        trial_id=trial_id,
                        request_id=f"r{request}",
                        outcome=outcome if failed else "ok",
                    )
                )
                if failed:
                    findings.append(
                        {
                            "finding_id": f"f{request}",
                            "trial_id": trial_id,
                            "rule": "wrong-kv-read",
                            "severity": "wrong data",
                            "request_id": f"r{request}",
                            "message": "m",
                        }
                    )
    tables = {
        "requests": to_frame("requests", request_rows),
        "trials": to_frame("trials", trial_rows),
        "findings": to_frame("findings", findings),
    }
    return verdicts_of(tables, hypotheses), tables


def control(arm: Names, *, injected: bool = True, alarmed: bool = True) -> Control:
    return Control(REPORTED, "trie", arm, "fault:wrong-page", injected, alarmed)


def verdicts_of(
    tables: dict[str, pd.DataFrame],
    hypotheses: Sequence[Hypothesis],
    failures: Sequence[str] = FAILURES,
    controls: Sequence[Control] | None = None,
) -> list[Verdict]:
    """Return the verdicts on one scenario; without other controls, one in each arm was found."""
    if controls is None:
        sets = tables["trials"]["treatments"].map(tuple)
        controls = [control(names) for names in dict.fromkeys(sets)]
    frames = (tables[name] for name in ("requests", "trials", "findings"))
    return decide(measure(*frames, hypotheses, failures, controls=controls))


def words(found: Sequence[Verdict]) -> dict[str, str]:
    return {v.hypothesis.treatment: v.status for v in found}


def of(found: Sequence[Verdict], treatment: str) -> Verdict:
    return next(v for v in found if v.hypothesis.treatment == treatment)


def one_cause(names: Sequence[str]) -> float:
    return 0.0 if "correct-seq-lens" in names else 0.3


def two_that_mask_each_other(names: Sequence[str]) -> float:
    fixed = {"correct-seq-lens", "copy-tokens"} & set(names)
    return {0: 0.5, 1: 0.5, 2: 0.0}[len(fixed)]


def two_that_add_up(names: Sequence[str]) -> float:
    left = 0.4 * ("correct-seq-lens" not in names) + 0.15 * ("copy-tokens" not in names)
    return left
