"""Builds rows of the tables `trials` and `requests` from the files of a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.shortfin.config import EngineConfig
from analysis.shortfin.releases import row_of
from analysis.sweep.grid import Trial
from analysis.sweep.plan import OBSERVED, Plan
from analysis.workloads.workload import Answers, Request, Workload, check_output

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
_ANSWER = (
    "prompt_tokens", "text", "tokens", "outcome", "error", "submitted_s", "latency_s", "ttft_s",
    "retries",
)  # fmt: skip
"""Columns written by the engine's side; the others come from the request and the reference."""


@dataclass(frozen=True)
class Ended:
    """The end of a trial, in a child process or in this one."""

    records: Sequence[Mapping[str, Any]]
    """The finished requests, as rows of `requests` without the output checks."""
    duration_s: float
    status: str = "ok"
    detail: str | None = None
    exit_signal: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the trial wrote: device, peak_rss_bytes, log."""
    ended_ns: int | None = None
    """Time at which its process was found ended, on the monotonic clock; None if unknown."""


def trial_row(
    run_id: str, plan: Plan, trial: Trial, ended: Ended, git_commit: str | None = None
) -> Row:
    """Return the row of `trials`."""
    injection = ended.facts.get("injected")
    config = EngineConfig.from_json(plan.engine_config(trial))
    return {
        "run_id": run_id,
        "trial_id": trial.trial_id,
        "release": trial.release,
        "device": ended.facts.get("device") or plan.device,
        "prefix_sharing": trial.prefix_sharing,
        "page_count": config.page_count,
        "batch_sizes": config.compiled_batch_sizes,
        "concurrency": trial.concurrency,
        "repeat": trial.repeat,
        "workload": plan.workload_of(trial.repeat),
        "treatments": list(trial.treatments),
        "options": json.dumps(plan.options_of(trial), sort_keys=True),
        "page_tokens": ended.facts.get("page_tokens"),
        "supported_fixes": list(row_of(trial.release).fixes),
        "git_commit": git_commit,
        "seed": plan.prompt_seed(trial.concurrency, trial.repeat),
        "status": ended.status,
        "status_detail": ended.detail,
        "exit_signal": ended.exit_signal,
        "duration_s": ended.duration_s,
        "peak_rss_bytes": ended.facts.get("peak_rss_bytes"),
        "engine_log": ended.facts.get("log"),
        "recording": OBSERVED[plan.observe],
        "injected": injection is not None if "injected" in ended.facts else None,
        "injection": injection,
        "target": trial.target,
    }


def request_rows(trial: Trial, workload: Workload, answers: Answers, ended: Ended) -> list[Row]:
    """Return a row for every request of the workload, in its order, after both output checks.

    The outcome of an unfinished request is `timeout` if the trial hung, else `engine_died`.
    """
    finished = {record["request_id"]: record for record in ended.records}
    rows = []
    for number, request in enumerate(workload.requests):
        record = finished.get(request.id) or _unfinished(ended)
        # Request i belongs to client i modulo concurrency, as in `engine/clients.py`.
        position, client = divmod(number, trial.concurrency)
        row = _row(trial, request, answers, record)
        rows.append({**row, "client": client, "position": position})
    return rows


def add_observed(rows: Sequence[Row], recorded: Mapping[str, pa.Table]) -> None:
    """Fill in the columns of `requests` that are derived from the trial's events."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from analysis.runs.derive import DERIVED_FROM, request_columns
    from analysis.runs.schema import TABLES
    from analysis.runs.tables import to_frame

    if "events" not in recorded:
        return
    events = recorded["events"]
    events = events.filter(pc.is_in(events["kind"], pa.array(DERIVED_FROM)))
    snapshots = recorded.get("snapshots", TABLES["snapshots"].empty_table())
    columns = request_columns(
        to_frame("events", events), to_frame("snapshots", snapshots), to_frame("requests", rows)
    )
    for name in columns:
        values = columns[name].astype(object).where(columns[name].notna(), None)
        for row, value in zip(rows, values, strict=True):
            row[str(name)] = value


def finding_rows(
    plan: Plan, trial: Trial, rows: Sequence[Row], recorded: Mapping[str, pa.Table], ended: Ended
) -> tuple[list[Row], str | None]:
    """Return the sanitizer's findings in the tables of a trial, as rows of `findings`.

    The second value says what could not be checked; None if everything was checked. The number of
    unchecked invocations of each request is written into `rows`.
    """
    from analysis.sanitizer.recorded import check_tables, context_length_of

    context = context_length_of({"model": plan.model})
    findings = check_tables(recorded, ended.facts.get("page_tokens"), context_length=context)
    if findings is None:
        return [], None
    for row in rows:
        row["unchecked"] = findings.unchecked.requests[row["request_id"]]
    return findings.rows(trial.trial_id), " ".join(findings.not_checked) or None


def count_outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of requests with each outcome, including zeros."""
    from analysis.runs.store import OUTCOMES

    return {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES}


def checked_outcome(
    record: Mapping[str, Any], request: Request, reference: Sequence[int] | None
) -> tuple[str, int | None]:
    """Return the outcome of a record after both output checks, and its first divergence.

    A record already compared with the expected text is checked again.
    """
    own = "ok" if record["outcome"] == "wrong" else record["outcome"]
    return check_output(
        record.get("tokens") or (), record.get("text") or "", own, request, reference
    )


def _row(trial: Trial, request: Request, answers: Answers, record: Mapping[str, Any]) -> Row:
    reference = answers.get((request.prompt, request.max_new_tokens))
    outcome, divergence = checked_outcome(record, request, reference)
    return {
        **{name: record.get(name) for name in _ANSWER},
        "request_id": request.id,
        "trial_id": trial.trial_id,
        "family": request.family,
        "prompt": request.prompt,
        "expected_text": request.expected,
        "reference_tokens": None if reference is None else list(reference),
        "outcome": outcome,
        "first_divergence": divergence,
    }


def _unfinished(ended: Ended) -> dict[str, Any]:
    return {
        "outcome": "timeout" if ended.status == "hung" else "engine_died",
        "error": "The trial ended before this request was answered.",
    }
