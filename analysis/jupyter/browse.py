"""The requests of a run as a table to sort and filter; a click shows what is known of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.core.errors import RunError
from analysis.core.wording import finding_name
from analysis.diagnosis.verdict import recorded_statuses
from analysis.jupyter.frames import FramedPage, framed
from analysis.runs.derive import failed_requests
from analysis.runs.schema import FAILURES
from analysis.runs.store import Run
from analysis.stats.configurations import labelled

_HEIGHT, _SHOWN = 640, 8
"""Of the frame in pixels, and most findings of a request."""
_COLUMNS = {
    "request_id": "request", "release": "release", "prefix_sharing": "sharing",
    "page_count": "pages", "concurrency": "at once", "treatments": "treatments",
    "repeat": "repeat", "family": "family", "outcome": "outcome", "verdict": "verdict",
    "latency_s": "seconds", "first": "first finding",
}  # fmt: skip
_FACTS = {"prompt": "prompt", "text": "answer", "expected_text": "expected", "error": "error",
          "cached_tokens": "cached tokens", "evictions_during": "evictions meanwhile"}  # fmt: skip


def browse(run: Run) -> FramedPage:
    """Return the requests of a run as a table; failed ones first, as `explain` takes them.

    A click on one shows its prompt, answer and findings, and what to type to explain or replay it.
    Raises RunError if no trial has finished.
    """
    if run.requests.empty:
        raise RunError(f"No trial of {run.path} has finished, so there is nothing to browse.")
    trials = labelled(run.trials).assign(treatments=lambda t: t["treatments"].astype(str))
    findings = dict(list(run.findings.sort_values("seq").groupby(["trial_id", "request_id"])))
    order = failed_requests(run.requests, run.trials)[["trial_id", "request_id"]]
    place = {key: n for n, key in enumerate(order.itertuples(index=False, name=None))}
    whole = run.requests.merge(trials, on="trial_id", suffixes=("", "_of_trial"))
    whole = whole.merge(recorded_statuses(run), on=["trial_id", "request_id"], how="left")
    rows = [_row(row, findings) for row in whole.to_dict("records")]
    rows.sort(key=lambda row: place.get((row["trial"], row["request"]), len(place)))
    data = {"columns": list(_COLUMNS.values()), "rows": rows}
    return framed("browse.html.j2", f"Requests of {run.path.name}", data, _HEIGHT)


def _row(row: Mapping[Any, Any], findings: Mapping[Any, pd.DataFrame]) -> dict[str, Any]:
    found = findings.get((row["trial_id"], row["request_id"]))
    listed = [] if found is None else found.head(_SHOWN).to_dict("records")
    about = [[finding_name(one["rule"], one["cause"]), one["message"]] for one in listed]
    values = {**row, "first": about[0][0] if about else None}
    return {
        "trial": row["trial_id"],
        "request": row["request_id"],
        "failed": row["outcome"] in FAILURES,
        "cells": [_plain(values[name]) for name in _COLUMNS],
        "facts": {label: _plain(row[name]) for name, label in _FACTS.items() if _known(row[name])},
        "findings": about,
    }


def _known(value: Any) -> bool:
    return bool(pd.notna(value))


def _plain(value: Any) -> Any:
    if not _known(value):
        return None
    return round(value, 3) if isinstance(value, float) else value
