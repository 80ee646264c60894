"""The sanitized sweep of notebook 04."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.engine import Engine, EngineConfig
from analysis.recording import observe
from analysis.sanitizer import kv_compare
from analysis.sweep.plan import Plan
from analysis.treatments import applies, treat
from analysis.workloads.named import make_workload

if TYPE_CHECKING:
    import pandas as pd

_SMALL_CONCURRENCY, _SMALL_TIMEOUT_S = 8, 8.0


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


def small_sweep(release: str, pages: int, requests: int, workload: str, seed: int = 0) -> Plan:
    """Return a sanitized sweep of one engine with the trie and few pages."""
    return Plan(
        releases=(release,), prefix_sharing=("trie",), pages=(pages,),
        concurrency=(_SMALL_CONCURRENCY,), workload=workload,
        rounds=-(-requests // _SMALL_CONCURRENCY), repeats=1, seed=seed, sanitize=True,
        request_timeout_s=_SMALL_TIMEOUT_S,
    )  # fmt: skip


def compared_slots(
    config: EngineConfig, log_dir: Path, treatments: Sequence[str], workload: str
) -> pd.DataFrame:
    """Compare the slots of four concurrent requests with the reference; see `kv_compare`."""
    with Engine(config, log_dir=log_dir) as engine:
        with observe(engine) as recording, treat(engine, *treatments):
            engine.run(make_workload(workload, count=4, seed=3), concurrency=4)
        return kv_compare.compare(engine, kv_compare.written(recording))
