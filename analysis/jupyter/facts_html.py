"""Engines, runs, answers and workloads as Jupyter shows them: small tables of facts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from analysis.plots.tables import facts, html_table, outcomes_table

if TYPE_CHECKING:
    from analysis.engine import Completion, Engine
    from analysis.runs.store import Run
    from analysis.workloads.workload import Workload

_SHOWN = 12
"""Requests of a workload that are shown."""


def engine_html(engine: Engine) -> str:
    """Return release, settings and state of an engine."""
    config = engine.config
    state = "running" if engine.service is not None else "not running"
    rows = {
        "release": f"shortfin {engine.release} on {engine.device}",
        "state": f"died: {engine.died.message}" if engine.died else state,
        "prefix sharing": config.prefix_sharing,
        "pages": config.page_count,
        "batch sizes": ", ".join(map(str, config.batch_sizes)),
        **config.options,
    }
    return facts(rows).markup


def completion_html(answer: Completion) -> str:
    """Return how a request ended, with its prompt, answer and times."""
    rows = {
        "request": answer.request_id,
        "outcome": answer.outcome,
        "prompt": answer.prompt,
        "answer": answer.text,
        "error": answer.error,
        "latency": f"{answer.latency_s:.3f} s",
        "first token": None if answer.ttft_s is None else f"{answer.ttft_s:.3f} s",
    }
    return facts({name: value for name, value in rows.items() if value is not None}).markup


def workload_html(workload: Workload) -> str:
    """Return the first requests of a workload."""
    import pandas as pd

    rows = [
        (one.id, one.prompt, one.max_new_tokens, one.expected or "", one.family)
        for one in workload.requests[:_SHOWN]
    ]
    frame = pd.DataFrame(rows, columns=["id", "prompt", "new tokens", "expected", "family"])
    more = len(workload.requests) - len(rows)
    below = f"And {more} more." if more else ""
    return f"<p><b>{escape(workload.name)}</b></p>{html_table(frame, below=below).markup}"


def run_html(run: Run) -> str:
    """Return how the requests of a run ended, for each setting and concurrency."""
    if run.trials.empty:
        return "<p>No trial has finished.</p>"
    return outcomes_table(run.requests, run.trials).markup
