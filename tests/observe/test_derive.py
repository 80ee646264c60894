"""What a recording tells of each request, against a version that takes one event at a time."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import request_row

from analysis.observe.derive import DERIVED_FROM, request_columns
from analysis.tables import to_frame

Row = dict[str, Any]
COLUMNS = ["cached_tokens", "evictions_during", "pages_before", "pages_after"]
cells = st.sampled_from(["a", "b"])
ids = st.sampled_from(["r0", "r1", "r2"])


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row]]:
    """Events, snapshots and requests of up to two cells, in any order, as seqs from one counter."""
    event = st.fixed_dictionaries(
        {
            "cell_id": cells,
            "request_id": st.none() | ids,
            "kind": st.sampled_from([*DERIVED_FROM, "evict", "match", "acquire"]),
            "operation": st.sampled_from([None, "acquire", "lookup", "publish"]),
            "pages": st.none() | st.lists(st.integers(0, 9), max_size=3),
            "tokens_hit": st.none() | st.integers(0, 64),
            "t_ns": st.just(0),
        }
    )
    snapshot = st.fixed_dictionaries(
        {
            "cell_id": cells,
            "request_id": st.none() | ids,
            "moment": st.sampled_from(["before", "after", "failure", "asked"]),
            "page_count": st.just(24),
            "free": st.integers(0, 24),
        }
    )
    events, snapshots = draw(st.lists(event, max_size=25)), draw(st.lists(snapshot, max_size=8))
    places = draw(st.permutations(range(len(events) + len(snapshots))))
    for row, place in zip([*events, *snapshots], places, strict=True):
        row["seq"] = place
    keys = draw(st.lists(st.tuples(cells, ids), unique=True, max_size=6))
    return events, snapshots, [request_row(cell_id=c, request_id=r) for c, r in keys]


def naive(events: list[Row], snapshots: list[Row], request: Row) -> list[int | None]:
    def mine(row: Row) -> bool:
        return all(row[key] == request[key] for key in ("cell_id", "request_id"))

    cached = start = before = after = None
    evictions, done = 0, False
    for event in sorted(events, key=lambda row: row["seq"]):
        kind = event["kind"]
        if mine(event) and kind == "match" and event["operation"] in ("acquire", "lookup"):
            cached = [event["tokens_hit"]] if cached is None else cached
        elif mine(event) and kind == "submitted":
            # One that was refused and sent again was served the last time.
            start, evictions, done = event["seq"], 0, False
        elif mine(event) and kind == "done":
            done = True
        elif kind == "evict" and event["cell_id"] == request["cell_id"]:
            under_way = start is not None and not done
            evictions += len(event["pages"] or ()) if under_way else 0
    for snapshot in sorted(snapshots, key=lambda row: row["seq"]):
        used = snapshot["page_count"] - snapshot["free"]
        if mine(snapshot) and snapshot["moment"] == "before" and before is None:
            before = used
        elif mine(snapshot) and snapshot["moment"] == "after":
            after = used
    return [cached and cached[0], None if start is None else evictions, before, after]


def derived(events: list[Row], snapshots: list[Row], requests: list[Row]) -> pd.DataFrame:
    return request_columns(
        to_frame("events", events), to_frame("snapshots", snapshots), to_frame("requests", requests)
    )


@given(recordings())
@settings(max_examples=200, deadline=None)
def test_it_tells_what_one_event_at_a_time_tells(made: tuple[list[Row], ...]) -> None:
    events, snapshots, requests = made
    told = derived(events, snapshots, requests)
    assert list(told.columns) == COLUMNS
    assert {str(kind) for kind in told.dtypes} == {"Int64"}
    for row, request in zip(told.itertuples(index=False), requests, strict=True):
        plain = [None if pd.isna(value) else int(value) for value in row]
        assert plain == naive(events, snapshots, request)


def test_the_index_of_the_requests_is_kept() -> None:
    requests = to_frame("requests", [request_row(request_id=f"r{n}") for n in range(3)])
    shuffled = requests.set_index(pd.Index([7, 7, 3]))
    events = [{"seq": n, "cell_id": "c", "t_ns": 0, "kind": kind, "request_id": request,
               "pages": pages} for n, (kind, request, pages) in enumerate(
        [("submitted", "r0", None), ("evict", "r9", [4]), ("submitted", "r1", None),
         ("evict", None, [5, 6]), ("done", "r0", None), ("evict", "r1", [1])])]  # fmt: skip
    told = request_columns(to_frame("events", events), to_frame("snapshots", []), shuffled)
    assert list(told.index) == [7, 7, 3]
    assert told["evictions_during"].tolist() == [3, 3, pd.NA]
    assert shuffled.assign(**told)["evictions_during"].tolist() == [3, 3, pd.NA]


def test_nothing_recorded_is_nothing_known() -> None:
    told = derived([], [], [request_row()])
    assert told.isna().all(axis=None)
    assert derived([], [], []).empty
