"""How long before a wrong token the sanitizer spoke, from the tables of a run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.runs.store import Run
from analysis.sanitizer.findings import WRONG_DATA

_KEY = ["trial_id", "request_id"]


def leads(run: Run) -> pd.DataFrame:
    """Return a row for each wrong answer of a sanitized run, with its first finding of wrong data.

    Columns: trial_id, request_id, first_divergence (token), wrong_invocation (invocation_id of the
    call that chose the first wrong token) and wrong_s (when it had its result); rule, cause,
    message, invocation_id and t_s of the first finding on the same request at which wrong data was
    read, null where there is none; invocations_before (calls for this request from that finding to
    the wrong token, 0 if both came in one) and seconds_before. Requests whose invocations were not
    recorded, or which leave the reference nowhere, are left out.
    """
    wrong = run.requests[
        (run.requests["outcome"] == "wrong") & run.requests["first_divergence"].notna()
    ]
    flown = _flown(run.invocations, wrong)
    rows = []
    for case in wrong.to_dict("records"):
        own = flown.get((case["trial_id"], case["request_id"]))
        token = int(case["first_divergence"])
        # The prefill chooses token 0, each decode the next.
        if own is None or token >= len(own):
            continue
        call = own.iloc[token]
        rows.append(
            {
                "trial_id": case["trial_id"],
                "request_id": case["request_id"],
                "first_divergence": token,
                "wrong_invocation": int(call["invocation_id"]),
                "wrong_s": float(call["t_s"] + call["duration_s"]),
            }
        )
    columns = ["trial_id", "request_id", "first_divergence", "wrong_invocation", "wrong_s"]
    frame = pd.DataFrame(rows, columns=columns)
    found = run.findings[run.findings["severity"] == WRONG_DATA].sort_values("seq")
    found = found.drop_duplicates(_KEY)[[*_KEY, "rule", "cause", "message", "invocation_id", "t_s"]]
    frame = frame.merge(found, on=_KEY, how="left")
    frame["invocations_before"] = [_between(flown, case) for case in frame.to_dict("records")]
    frame["invocations_before"] = frame["invocations_before"].astype("Int64")
    frame["seconds_before"] = frame["wrong_s"] - frame["t_s"]
    return frame


def _between(flown: dict[tuple[str, str], pd.DataFrame], case: dict[Any, Any]) -> int | None:
    """Return how many calls for a request lay between its finding and its wrong token."""
    if pd.isna(case["invocation_id"]):
        return None
    calls = flown[case["trial_id"], case["request_id"]]["invocation_id"]
    return int(((calls >= case["invocation_id"]) & (calls < case["wrong_invocation"])).sum())


def _flown(invocations: pd.DataFrame, wanted: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the invocations of each request, in order."""
    keys = set(map(tuple, wanted[_KEY].to_numpy()))
    columns = ["trial_id", "invocation_id", "t_s", "duration_s", "seq", "request_ids"]
    trials = {trial for trial, _ in keys}
    own = invocations.loc[invocations["trial_id"].isin(trials), columns].explode("request_ids")
    own = own.rename(columns={"request_ids": "request_id"}).sort_values("seq")
    groups = own.groupby(_KEY)
    return {key: groups.get_group(key) for key in keys if key in groups.groups}
