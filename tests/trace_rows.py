"""Events and invocations as rows of the tables of a run."""

from __future__ import annotations

from typing import Any

from analysis.sanitizer.trace import Event, Invocation


def event_row(event: Event, trial_id: str) -> dict[str, Any]:
    """Return an event as a row of its table."""
    row = event._asdict()
    extras = row.pop("extras")
    return {**row, **extras, "trial_id": trial_id, "pages": list(event.pages)}


def invocation_row(invocation: Invocation, trial_id: str) -> dict[str, Any]:
    """Return an invocation as a row of its table."""
    return {
        "invocation_id": invocation.invocation_id,
        "trial_id": trial_id,
        "phase": invocation.phase,
        "rows": invocation.real,
        "batch_size": len(invocation.tokens),
        "request_ids": invocation.request_ids,
        "tokens": invocation.tokens.tolist(),
        "seq_lens": invocation.seq_lens.tolist(),
        "start_positions": None if invocation.starts is None else invocation.starts.tolist(),
        "block_tables": invocation.tables.tolist(),
        "seq": invocation.seq,
        "end_seq": invocation.end_seq,
        "thread": invocation.thread,
        "t_s": invocation.t_s,
        "duration_s": (invocation.end_seq - invocation.seq) / 1000,
        "result_tokens": invocation.result_tokens,
        "result_digests": invocation.result_digests,
        "changed": invocation.changed,
    }
