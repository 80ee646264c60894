"""A request with all recorded tables of its trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.core.errors import RunError
from analysis.core.wording import listed
from analysis.recording.stream import cut_in_words
from analysis.runs.manifest import refuse_light
from analysis.runs.schema import TABLES
from analysis.runs.store import Run
from analysis.runs.tables import to_frame, to_table

_NAMED = 8


@dataclass(frozen=True)
class RequestTrace:
    """One request and the tables of its trial, in the order of events."""

    run: Run
    trial: Mapping[str, Any]
    """The trial's row of the table `trials`; missing values are None."""
    request: Mapping[str, Any]
    """Its row of the table `requests`; missing values are None."""
    requests: pd.DataFrame
    invocations: pd.DataFrame
    events: pd.DataFrame
    snapshots: pd.DataFrame
    findings: pd.DataFrame

    @property
    def name(self) -> str:
        """The request's id."""
        return str(self.request["request_id"])

    @property
    def outcome(self) -> str:
        """How the request ended."""
        return str(self.request["outcome"])

    @property
    def recorded(self) -> bool:
        """Whether its trial has a recording."""
        return len(self.events) > 0 or len(self.invocations) > 0

    @cached_property
    def page_tokens(self) -> int:
        """Tokens of a page. Raises RunError if the run does not record it."""
        if (number := self.trial["page_tokens"]) is None:
            raise RunError(
                f"Trial {self.trial['trial_id']} has no page_tokens (tokens of a page). Record the"
                " run again."
            )
        return int(number)

    @property
    def cut(self) -> str | None:
        """If the recording was cut before the request's end: where, in a sentence."""
        for event in self.events[self.events["kind"] == "cut"].to_dict("records"):
            if self.name in (event["request_ids"] or ()):
                return cut_in_words(event["t_s"], value_of(event["late_s"]), event["request_ids"])
        return None

    @property
    def last_seq(self) -> int:
        """`seq` of the trial's last event; 0 if there is none."""
        return int(self.events["seq"].max()) if len(self.events) else 0

    def events_of(self, *kinds: str, request_id: str | None = None) -> pd.DataFrame:
        """Return the events of some kinds for a request (default: the traced one)."""
        own = self.events["request_id"] == (request_id or self.name)
        return self.events[own & self.events["kind"].isin(kinds)]

    def seq_of(self, kind: str) -> int | None:
        """Return the `seq` of the request's first event of a kind; None if there is none."""
        found = self.events_of(kind)
        return None if found.empty else int(found["seq"].iloc[0])


def trace_of(run: Run, request_id: str, trial_id: str | None = None) -> RequestTrace:
    """Return the trace of a request; `trial_id` selects the trial if several have such a request.

    A trial recorded without the sanitizer is checked first. Raises RunError if the trial or request
    does not exist, if several trials have such a request, or if a light run lacks the trial.
    """
    row = _row(run, request_id, trial_id)
    trial_id = str(row["trial_id"])
    refuse_light(run.path, run.manifest, trial_id)
    own = {name: _of_trial(getattr(run, name), trial_id) for name in TABLES if name != "trials"}
    plan = run.manifest.get("plan") or {}
    trial = run.trials[run.trials["trial_id"] == trial_id].iloc[0]
    if own["findings"].empty and not own["snapshots"].empty and not plan.get("sanitize"):
        own["findings"] = _findings(own, trial_id, value_of(trial["page_tokens"]))
    return RequestTrace(run=run, trial=plain(trial), request=plain(row), **own)


def plain(row: pd.Series[Any]) -> dict[str, Any]:
    """Return a row as Python values, None for missing ones."""
    return {str(name): value_of(value) for name, value in row.items()}


def value_of(value: Any) -> Any:
    """Return a value of a frame as a Python value, None if missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def check_trial(run: Run, trial_id: str) -> None:
    """Raise RunError if a run has no such trial."""
    trials = list(run.trials["trial_id"])
    if trial_id not in trials:
        raise RunError(
            f"{run.path} has no trial {trial_id!r}. It has {listed(trials, most=_NAMED)}."
        )


def _row(run: Run, request_id: str, trial_id: str | None) -> pd.Series[Any]:
    requests = run.requests
    if trial_id is not None:
        check_trial(run, trial_id)
        requests = requests[requests["trial_id"] == trial_id]
    found = requests[requests["request_id"] == request_id]
    if found.empty:
        where = f"trial {trial_id} of {run.path}" if trial_id else str(run.path)
        names = listed(sorted(requests["request_id"].unique()), most=_NAMED)
        raise RunError(f"{where} has no request {request_id!r}. It has {names}.")
    if len(found) > 1:
        found = found.sort_values("outcome", key=lambda kinds: kinds == "ok", kind="stable")
        among = [f"{row.trial_id} ({row.outcome})" for row in found.itertuples()]
        raise RunError(
            f"{len(found)} trials of {run.path} have a request {request_id!r}. Name one of these"
            f" trials: {listed(among, most=_NAMED)}."
        )
    return found.iloc[0]


def _of_trial(frame: pd.DataFrame, trial_id: str) -> pd.DataFrame:
    own = frame[frame["trial_id"] == trial_id]
    if "seq" in own.columns:
        own = own.sort_values("seq", kind="stable")
    return own.reset_index(drop=True)


def _findings(
    frames: Mapping[str, pd.DataFrame], trial_id: str, page_tokens: int | None
) -> pd.DataFrame:
    from analysis.sanitizer.recorded import check_tables

    recorded: dict[str, pa.Table] = {}
    for name in ("events", "invocations", "snapshots"):
        rows = [
            {str(key): value_of(value) for key, value in row.items()}
            for row in frames[name].to_dict("records")
        ]
        if rows:
            recorded[name] = to_table(name, rows)
    findings = check_tables(recorded, page_tokens)
    return to_frame("findings", [] if findings is None else findings.rows(trial_id))
