"""Columns of requests and exposures of engines, derived from recordings."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.runs.schema import FAILURES

DERIVED_FROM = ("submitted", "match", "evict", "done")
"""The event kinds that are used; others may be left out."""
_LOOKUPS = ("acquire", "lookup")
_KEY = ["trial_id", "request_id"]


def request_columns(
    events: pd.DataFrame, snapshots: pd.DataFrame, requests: pd.DataFrame
) -> pd.DataFrame:
    """Return four columns of `requests`, with its index; null where not recorded.

    - `cached_tokens`: prompt tokens found in the trie at the request's first lookup.
    - `evictions_during`: pages evicted for any request between its `submitted` and its `done` (the
      end of the events if there is no `done`); null if it has no `submitted`.
    - `pages_before`, `pages_after`: pages in use in the snapshots before and after it.

    The frames are the tables of the same names, of any number of trials.
    """
    events = events.sort_values("seq", kind="stable")
    snapshots = snapshots.sort_values("seq", kind="stable")
    columns = {
        "cached_tokens": _of_each(requests, _first_lookup(events)),
        "evictions_during": _evictions(events, requests),
        "pages_before": _of_each(requests, _pages(snapshots, "before", "first")),
        "pages_after": _of_each(requests, _pages(snapshots, "after", "last")),
    }
    return pd.DataFrame(columns, index=requests.index, dtype="Int64")


def _of_each(requests: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Return the value of each request, by its trial and id."""
    keys = pd.MultiIndex.from_frame(requests[_KEY])
    return pd.Series(values.reindex(keys).array, index=requests.index, dtype="Int64")


def _first_lookup(events: pd.DataFrame) -> pd.Series:
    looked = events[(events["kind"] == "match") & events["operation"].isin(_LOOKUPS)]
    looked = looked.dropna(subset=["request_id"]).drop_duplicates(_KEY)
    return looked.set_index(_KEY)["tokens_hit"]


def _pages(snapshots: pd.DataFrame, moment: str, keep: str) -> pd.Series:
    taken = snapshots[snapshots["moment"] == moment].dropna(subset=["request_id"])
    taken = taken.drop_duplicates(_KEY, keep="first" if keep == "first" else "last")
    return (taken["page_count"] - taken["free"]).set_axis(pd.MultiIndex.from_frame(taken[_KEY]))


def _evictions(events: pd.DataFrame, requests: pd.DataFrame) -> pd.Series:
    starts = _of_each(requests, _seq_of(events, "submitted"))
    ends = _of_each(requests, _seq_of(events, "done"))
    ends = ends.where(ends > starts)  # the `done` of a rejected try is not that of the next try
    evicted = events[events["kind"] == "evict"]
    found = pd.Series(pd.NA, index=requests.index, dtype="Int64")
    for trial_id, places in requests.groupby("trial_id").indices.items():
        own = evicted[evicted["trial_id"] == trial_id]
        pages = [len(pages) if isinstance(pages, tuple) else 0 for pages in own["pages"]]
        # up_to[i]: pages in the first i eviction events of this trial.
        up_to = np.concatenate([[0], np.cumsum(pages, dtype=np.int64)])
        seqs = own["seq"].to_numpy(dtype=np.int64)
        start, end = starts.iloc[places], ends.iloc[places]
        last = np.iinfo(np.int64).max
        before = up_to[np.searchsorted(seqs, start.fillna(0).to_numpy(np.int64), side="right")]
        until = up_to[np.searchsorted(seqs, end.fillna(last).to_numpy(np.int64), side="left")]
        during = pd.array(np.maximum(until - before, 0), dtype="Int64")
        during[start.isna().to_numpy()] = pd.NA
        found.iloc[places] = during
    return found


def _seq_of(events: pd.DataFrame, kind: str) -> pd.Series:
    wanted = events[events["kind"] == kind].dropna(subset=["request_id"])
    # A request that was rejected and sent again was served at its last try.
    return wanted.drop_duplicates(_KEY, keep="last").set_index(_KEY)["seq"]


EXPOSURES = {
    "accepted": "share of the sent requests that were accepted",
    "at_once": "most requests under way at the same time",
    "batch_rows": "mean number of requests in a batch",
    "overlap": "share of the batches that ran at the same time as another",
    "hits": "share of the prompt tokens found in the cache",
    "evictions": "evicted pages per accepted request",
    "pages": "most pages in use at the same time",
}
"""Conditions that may cause failures: columns of `exposure`."""


def failed_requests(requests: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Return the failed requests, those to explain first at the top.

    Untreated ones come first, and wrong answers before other failures, which leave less to examine.
    Columns: request_id, trial_id, outcome, treatments.
    """
    asked = requests.merge(trials[["trial_id", "treatments"]], on="trial_id")
    failed = asked.loc[
        asked["outcome"].isin(FAILURES), ["request_id", "trial_id", "outcome", "treatments"]
    ]
    order = failed.assign(
        treated=failed["treatments"].map(bool), rank=failed["outcome"].map(FAILURES.index)
    )
    order = order.sort_values(["treated", "rank"], kind="stable")
    return order.drop(columns=["treated", "rank"]).reset_index(drop=True)


def exposure(
    trials: pd.DataFrame, requests: pd.DataFrame, invocations: pd.DataFrame, events: pd.DataFrame
) -> pd.DataFrame:
    """Return a row for each trial: its trial_id, and a column for each of EXPOSURES.

    A value is NaN if it was not recorded: all except `accepted` and `at_once` need the tables
    `invocations` and `events`. A request of unknown duration counts as under way to the end.
    """
    asked = dict(tuple(requests.groupby("trial_id")))
    by_trial = dict(tuple(invocations.groupby("trial_id")))
    events_by_trial = dict(tuple(events.groupby("trial_id")))
    rows = []
    for trial in trials.to_dict("records"):
        name = trial["trial_id"]
        own = asked.get(name, requests.iloc[:0])
        rows.append(
            {
                "trial_id": name,
                **_admitted(own, int(trial["concurrency"])),
                **_batches(by_trial.get(name)),
                **_cache(events_by_trial.get(name), own, trial.get("page_count")),
            }
        )
    return pd.DataFrame(rows, columns=["trial_id", *EXPOSURES])


def _admitted(own: pd.DataFrame, concurrency: int) -> dict[str, float]:
    if own.empty:
        return {"accepted": np.nan, "at_once": np.nan}
    accepted = float((own["outcome"] != "rejected").mean())
    at_once = max_at_once(own, concurrency)
    return {"accepted": accepted, "at_once": np.nan if at_once is None else float(at_once)}


def max_at_once(own: pd.DataFrame, concurrency: int) -> int | None:
    """Return the most requests of a trial under way at the same time; None if unknown."""
    taken = own[own["outcome"] != "rejected"]
    sent = taken["submitted_s"].to_numpy(dtype=float)
    known = ~np.isnan(sent)
    if not known.any():
        return None if len(taken) or own.empty else 0
    took = taken["latency_s"].to_numpy(dtype=float)[known]
    starts, ends = np.sort(sent[known]), np.sort(sent[known] + np.nan_to_num(took, nan=np.inf))
    # At each start: requests begun so far minus requests ended.
    under_way = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    return min(concurrency, int(under_way.max()))


def _batches(own: pd.DataFrame | None) -> dict[str, float]:
    if own is None or own.empty:
        return {"batch_rows": np.nan, "overlap": np.nan}
    rows = float(own["rows"].astype(float).mean())
    whole = own.dropna(subset=["seq", "end_seq"])
    if whole.empty:
        return {"batch_rows": rows, "overlap": np.nan}
    starts, ends = (np.sort(whole[name].to_numpy(dtype=float)) for name in ("seq", "end_seq"))
    begun = np.searchsorted(starts, whole["end_seq"].to_numpy(dtype=float), side="left")
    ended = np.searchsorted(ends, whole["seq"].to_numpy(dtype=float), side="right")
    # Begun before its end, minus ended before its start, minus itself.
    return {"batch_rows": rows, "overlap": float(np.mean(begun - ended - 1 > 0))}


def _cache(own: pd.DataFrame | None, asked: pd.DataFrame, pages: int | None) -> dict[str, float]:
    if own is None or own.empty:
        return {"hits": np.nan, "evictions": np.nan, "pages": np.nan}
    taken = asked[asked["outcome"] != "rejected"]
    found = taken[taken["cached_tokens"].notna() & taken["prompt_tokens"].notna()]
    tokens = float(found["prompt_tokens"].map(len).sum())
    evicted = own.loc[own["kind"] == "evict", "pages"]
    evicted_pages = sum(len(pages) for pages in evicted if isinstance(pages, tuple))
    free = own["free_pages"].dropna()
    return {
        "hits": float(found["cached_tokens"].sum()) / tokens if tokens else np.nan,
        "evictions": evicted_pages / len(taken) if len(taken) else np.nan,
        "pages": np.nan if free.empty or pages is None else float(pages) - float(free.min()),
    }
