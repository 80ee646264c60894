"""The sanitized sweep of notebook 04."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.sweep.plan import Plan
from analysis.treatments import applies


def sanitized_sweep(
    release: str,
    prefix_sharing: Sequence[str],
    pages: Sequence[int],
    concurrency: Sequence[int],
    corrected: Sequence[str],
    *,
    workload: str = "mixed",
    repeats: int,
    rounds: int = 1,
    seed: int = 0,
) -> Plan:
    """Return a sweep without treatment and, where the release has them, with `corrected`."""
    arms = [()] + ([tuple(corrected)] if applies(corrected, release) else [])
    return Plan(
        releases=(release,), prefix_sharing=tuple(prefix_sharing), pages=tuple(pages),
        concurrency=tuple(concurrency), workload=workload, repeats=repeats, rounds=rounds,
        seed=seed, treatments=tuple(arms), sanitize=True,
    )  # fmt: skip
