"""Columns derived from a recording, against a version that takes one event at a time."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import request_row, trial_row

from analysis.runs.derive import DERIVED_FROM, EXPOSURES, exposure, request_columns
from analysis.runs.tables import to_frame

Row = dict[str, Any]
COLUMNS = ["cached_tokens", "evictions_during", "pages_before", "pages_after"]
trials = st.sampled_from(["a", "b"])
ids = st.sampled_from(["r0", "r1", "r2"])


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row]]:
    """Events, snapshots and requests of up to two trials, in any order, seqs from one counter."""
    event = st.fixed_dictionaries(
        {
            "trial_id": trials,
            "request_id": st.none() | ids,
            "kind": st.sampled_from([*DERIVED_FROM, "evict", "match", "acquire"]),
            "operation": st.sampled_from([None, "acquire", "lookup", "publish"]),
            "pages": st.none() | st.lists(st.integers(0, 9), max_size=3),
            "tokens_hit": st.none() | st.integers(0, 64),
            "t_s": st.just(0.0),
        }
    )
    snapshot = st.fixed_dictionaries(
        {
            "trial_id": trials,
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
    keys = draw(st.lists(st.tuples(trials, ids), unique=True, max_size=6))
    return events, snapshots, [request_row(trial_id=c, request_id=r) for c, r in keys]


def naive(events: list[Row], snapshots: list[Row], request: Row) -> list[int | None]:
    def mine(row: Row) -> bool:
        return all(row[key] == request[key] for key in ("trial_id", "request_id"))

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
        elif kind == "evict" and event["trial_id"] == request["trial_id"]:
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
@settings(max_examples=80, deadline=None)
def test_it_equals_the_result_of_one_event_at_a_time(made: tuple[list[Row], ...]) -> None:
    events, snapshots, requests = made
    derived_columns = derived(events, snapshots, requests)
    assert list(derived_columns.columns) == COLUMNS
    assert {str(kind) for kind in derived_columns.dtypes} == {"Int64"}
    for row, request in zip(derived_columns.itertuples(index=False), requests, strict=True):
        plain = [None if pd.isna(value) else int(value) for value in row]
        assert plain == naive(events, snapshots, request)


def test_the_index_of_the_requests_is_kept() -> None:
    requests = to_frame("requests", [request_row(request_id=f"r{n}") for n in range(3)])
    shuffled = requests.set_index(pd.Index([7, 7, 3]))
    events = [{"seq": n, "trial_id": "c", "t_s": 0.0, "kind": kind, "request_id": request,
               "pages": pages} for n, (kind, request, pages) in enumerate(
        [("submitted", "r0", None), ("evict", "r9", [4]), ("submitted", "r1", None),
         ("evict", None, [5, 6]), ("done", "r0", None), ("evict", "r1", [1])])]  # fmt: skip
    derived_columns = request_columns(
        to_frame("events", events), to_frame("snapshots", []), shuffled
    )
    assert list(derived_columns.index) == [7, 7, 3]
    assert derived_columns["evictions_during"].tolist() == [3, 3, pd.NA]
    assert shuffled.assign(**derived_columns)["evictions_during"].tolist() == [3, 3, pd.NA]


def test_nothing_recorded_is_nothing_known() -> None:
    derived_columns = derived([], [], [request_row()])
    assert derived_columns.isna().all(axis=None)
    assert derived([], [], []).empty


def met(
    requests: list[Row], invocations: list[Row] | None = None, events: list[Row] | None = None
) -> Row:
    trials = to_frame("trials", [trial_row(concurrency=4, page_count=24)])
    frame = exposure(
        trials,
        to_frame("requests", requests),
        to_frame("invocations", invocations or []),
        to_frame("events", events or []),
    )
    assert list(frame.columns) == ["trial_id", *EXPOSURES]
    [row] = frame.to_dict("records")
    return row


def test_an_engine_that_refuses_requests_ran_fewer_at_once_than_it_was_offered() -> None:
    sent = [
        request_row(request_id="a", submitted_s=0.0, latency_s=1.0),
        request_row(request_id="b", submitted_s=0.1, latency_s=1.0),
        request_row(request_id="c", submitted_s=0.1, latency_s=0.01, outcome="rejected"),
        request_row(request_id="d", submitted_s=2.0, latency_s=1.0),
    ]
    row = met(sent)
    assert (row["accepted"], row["at_once"]) == (0.75, 2)
    assert pd.isna(row["batch_rows"])
    assert pd.isna(row["evictions"])
    lost = met([*sent, request_row(request_id="e", submitted_s=2.1, latency_s=None)])
    assert lost["at_once"] == 2
    never = [request_row(request_id=f"{n}", latency_s=None, outcome="timeout") for n in range(9)]
    assert met(never)["at_once"] == 4  # no more than clients, whatever is not known


def test_what_batches_and_pages_an_engine_met() -> None:
    def invocation(number: int, rows: int, seq: int, end: int) -> Row:
        return {"invocation_id": number, "trial_id": "c", "phase": "decode", "rows": rows,
                "seq": seq,
                "end_seq": end}  # fmt: skip

    def event(seq: int, **more: Any) -> Row:
        return {"seq": seq, "trial_id": "c", "t_s": 0.0, **more}

    row = met(
        [request_row(request_id="a", prompt_tokens=[1] * 8, cached_tokens=4),
         request_row(request_id="b", prompt_tokens=[1] * 8, cached_tokens=0)],
        [invocation(0, 4, 1, 5), invocation(1, 2, 4, 8), invocation(2, 3, 9, 12)],
        [event(2, kind="evict", pages=[1, 2, 3], free_pages=10),
         event(3, kind="acquire", pages=[1], free_pages=7)],
    )  # fmt: skip
    assert row["batch_rows"] == 3
    assert row["overlap"] == 2 / 3  # the first two ran together, the third alone
    assert row["hits"] == 0.25
    assert row["evictions"] == 1.5
    assert row["pages"] == 17
