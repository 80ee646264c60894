"""How long before a wrong token the sanitizer reported wrong data, from the tables of a run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.runs.store import Run
from analysis.sanitizer.findings import WRONG_DATA

_KEY = ["trial_id", "request_id"]
_COLUMNS = [*_KEY, "first_divergence", "wrong_invocation", "wrong_s"]
_FOUND = [*_KEY, "rule", "cause", "message", "invocation_id", "t_s"]


def detection_lead(run: Run) -> pd.DataFrame:
    """Return a row for each wrong answer of a sanitized run, with its first finding of wrong data.

    Columns: trial_id, request_id, first_divergence (token), wrong_invocation (invocation_id of the
    call that chose the first wrong token) and wrong_s (when it ended); rule, cause, message,
    invocation_id and t_s of the first finding on the same request at which wrong data was read,
    null where there is none; invocations_before (calls for this request from that finding to the
    wrong token, 0 if both are the same call) and seconds_before. Requests whose invocations were
    not recorded, or whose tokens agree with the reference, are left out.
    """
    wrong = run.requests[run.requests["outcome"] == "wrong"].dropna(subset=["first_divergence"])
    calls = _calls(run.invocations, wrong)
    rows = []
    for trial_id, request_id, token in wrong[[*_KEY, "first_divergence"]].itertuples(index=False):
        own = calls.get((trial_id, request_id))
        # The prefill chooses token 0, each decode the next.
        if own is None or token >= len(own):
            continue
        call = own.iloc[int(token)]
        ended = float(call["t_s"] + call["duration_s"])
        rows.append((trial_id, request_id, int(token), int(call["invocation_id"]), ended))
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    found = run.findings[run.findings["severity"] == WRONG_DATA].sort_values("seq")
    frame = frame.merge(found.drop_duplicates(_KEY)[_FOUND], on=_KEY, how="left")
    before = [_between(calls, case) for case in frame.to_dict("records")]
    frame["invocations_before"] = pd.array(before, dtype="Int64")
    frame["seconds_before"] = frame["wrong_s"] - frame["t_s"]
    return frame


def _between(calls: dict[tuple[str, str], pd.DataFrame], case: dict[Any, Any]) -> int | None:
    """Return how many calls for a request lie between its finding and its wrong token."""
    if pd.isna(case["invocation_id"]):
        return None
    own = calls[case["trial_id"], case["request_id"]]["invocation_id"]
    return int(((own >= case["invocation_id"]) & (own < case["wrong_invocation"])).sum())


def _calls(invocations: pd.DataFrame, wanted: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the invocations of each wanted request, in order."""
    columns = ["trial_id", "invocation_id", "t_s", "duration_s", "seq", "request_ids"]
    own = invocations.loc[invocations["trial_id"].isin(wanted["trial_id"]), columns]
    own = own.explode("request_ids").rename(columns={"request_ids": "request_id"})
    own = own.merge(wanted[_KEY], on=_KEY).sort_values("seq")
    groups = own.groupby(_KEY)
    return {(str(trial), str(request)): group for (trial, request), group in groups}
