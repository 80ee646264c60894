"""What a recording tells about each request: what it found cached, what it cost the cache."""

from __future__ import annotations

import numpy as np
import pandas as pd

DERIVED_FROM = ("submitted", "match", "evict", "done")
"""The kinds of events that are looked at; others may be left out."""
_LOOKUPS = ("acquire", "lookup")
_KEY = ["cell_id", "request_id"]


def request_columns(
    events: pd.DataFrame, snapshots: pd.DataFrame, requests: pd.DataFrame
) -> pd.DataFrame:
    """Return four columns of `requests`, with its index and null where nothing was seen.

    `cached_tokens`: prompt tokens found in the trie when the request was first looked up there.
    `evictions_during`: pages that were evicted, for whomever, between its `submitted` and its
    `done`; up to the end of the events where it was never done, null where it was not seen to be
    submitted. `pages_before` and `pages_after`: pages out of the pool in the snapshots before and
    after it. The frames are those of the tables of the same names, of any number of cells.
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
    """Return the value of each request, looked up by its cell and its id."""
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
    ends = ends.where(ends > starts)  # one that was refused is not done with what it is sent again
    evicted = events[events["kind"] == "evict"]
    found = pd.Series(pd.NA, index=requests.index, dtype="Int64")
    for cell_id, places in requests.groupby("cell_id").indices.items():
        own = evicted[evicted["cell_id"] == cell_id]
        pages = [len(pages) if isinstance(pages, tuple) else 0 for pages in own["pages"]]
        # up_to[i]: pages in the first i eviction events of this cell.
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
    # One that was refused and sent again was served the last time.
    return wanted.drop_duplicates(_KEY, keep="last").set_index(_KEY)["seq"]
