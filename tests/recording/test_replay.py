"""Where pages were from event to event is followed, and the same as when the trie is walked."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.recording.replay import Replay, cached_or_leaked
from analysis.runs.tables import to_frame
from analysis.snapshots.snapshot import CacheState, Node, Snapshot

PAGES = range(1, 6)
ROOT = Snapshot(CacheState(0, (), {}, (Node(0, None, None, (), 0, False),)))
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["create", "create", "unlink", "node_overwritten", "pages_held", "pages_dropped",
             "acquire", "free", "duplicate", "done"]
        ),
        st.sampled_from(PAGES),
        st.integers(0, 20),
        st.sampled_from(["a", "b"]),
    ),
    max_size=40,
)  # fmt: skip


def events_of(steps: list[tuple[str, int, int, str]]) -> pd.DataFrame:
    """Make events of steps; a node hangs on any that ever was, also on one that is gone."""
    rows: list[dict[str, Any]] = []
    nodes = 0
    for kind, page, number, request in steps:
        row: dict[str, Any] = {"seq": len(rows) + 1, "trial_id": "c", "t_s": 0.0, "kind": kind}
        if kind == "create":
            nodes += 1
            row |= {"node": nodes, "parent": number % nodes, "pages": [page], "tokens": [1, 2]}
        elif kind in ("unlink", "node_overwritten"):
            if not nodes:
                continue
            row |= {"node": number % nodes + 1, "pages": [page]}
        elif kind == "done":
            row |= {"request_id": request}
        else:
            row |= {"request_id": request, "pages": [page]}
        rows.append(row)
    return to_frame("events", rows)


@given(steps)
@settings(max_examples=20, deadline=None)
def test_cached_pages_are_those_that_a_walk_through_the_trie_finds(steps) -> None:
    events = events_of([*steps, ("done", 1, 0, "a")])
    spans, walked = cached_or_leaked(events), Replay(ROOT)
    cached = spans[spans["state"] == "cached"]
    for seq in range(1, len(events)):
        now = (cached["begin"] <= seq) & (cached["end"] > seq)
        assert set(cached.loc[now, "page"]) == walked.apply(events, seq).cached(), seq


def test_the_trie_is_not_walked_again_at_every_event(monkeypatch) -> None:
    walks: list[int] = []
    walk = Replay._reachable
    monkeypatch.setattr(Replay, "_reachable", lambda self: walks.append(1) or walk(self))
    steps = [("create", 1 + n % 5, n, "a") for n in range(50)] + [("free", 1, 0, "a")] * 50
    assert len(cached_or_leaked(events_of(steps)))
    assert not walks
