"""The sanitized sweep of notebook 04."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.sweep.plan import Plan
from analysis.treatments import applies


def sanitized_sweep(
    release: str,
    prefix_sharing: Sequence[str],
    pages: Sequence[int],
    concurrency: Sequence[int],
    corrected: Sequence[str],
    **more: Any,
) -> Plan:
    """Return a sweep without treatment and, where the release has them, with `corrected`.

    `more` are further fields of `Plan`.
    """
    arms = [()] + ([tuple(corrected)] if applies(corrected, release) else [])
    return Plan(
        releases=(release,), prefix_sharing=tuple(prefix_sharing), pages=tuple(pages),
        concurrency=tuple(concurrency), treatments=tuple(arms), sanitize=True, **more,
    )  # fmt: skip
