"""A recording to step through: pages, trie, pending invocations and stack at every event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.core.errors import RunError
from analysis.core.wording import finding_name, listed
from analysis.diagnosis.pages import OWNED, owned_spans
from analysis.diagnosis.request_trace import check_trial
from analysis.jupyter.frames import FramedPage, framed
from analysis.plots.style import STATE_COLOURS
from analysis.recording.recording import Recording
from analysis.runs.manifest import refuse_light
from analysis.runs.schema import EVENT_KINDS, FAILURES
from analysis.runs.store import Run
from analysis.sanitizer.findings import Findings

_MORE = ("pages", "node", "parent", "ref_count", "tokens_hit", "wanted", "free_pages", "outcome",
         "operation", "message")  # fmt: skip
"""Columns of events that are shown where they have a value."""
_JUMPS = {"event": "event", "finding": "finding", "failure": "failed request", "evict": "eviction"}
_HEIGHT = 640
_MANY = 512
"""From so many pages on, they are small."""


def replay(
    source: Run | Recording, trial_id: str | None = None, findings: Findings | None = None
) -> FramedPage:
    """Return a view of a trial of a run, or of a recording, to step through event by event.

    Of a run, `trial_id` may be left out if it has one trial. `findings` are those of a recording's
    `sanitize`; a run has its own. Raises RunError if there is no such trial, or nothing recorded.
    """
    if isinstance(source, Run):
        trial_id = _trial(source, trial_id)
        frames = [
            frame[frame["trial_id"] == trial_id]
            for frame in (source.events, source.invocations, source.findings, source.requests)
        ]
        trials = source.trials.set_index("trial_id")
        pages = int(trials.loc[trial_id, "page_count"])  # type: ignore[arg-type]
        events, invocations, found, requests = frames
        failed = requests.loc[requests["outcome"].isin(FAILURES), "request_id"]
        title = trial_id
    else:
        events, invocations = source.events, source.invocations
        found = pd.DataFrame(findings.rows() if findings is not None else [])
        ends = events[events["kind"] == "done"]
        failed = ends.loc[ends["outcome"] != "ok", "request_id"]
        pages, title = source.taken[0].page_count, "a recording"
    if events.empty:
        raise RunError(f"Nothing was recorded of {title}, so it cannot be replayed.")
    data = _data(events.sort_values("seq"), invocations, found, set(failed), pages)
    return framed(
        "replay.html.j2", f"Replay of {title}", data, _HEIGHT, jumps=list(_JUMPS.items()),
        colours=[(state, STATE_COLOURS[state]) for state in OWNED],
        cell=12 if pages > _MANY else 22,
    )  # fmt: skip


def _trial(run: Run, trial_id: str | None) -> str:
    if trial_id is None:
        known = list(run.trials["trial_id"])
        if len(known) != 1:
            raise RunError(f"Give a trial. It has {listed(known, most=6)}.")
        trial_id = str(known[0])
    check_trial(run, trial_id)
    refuse_light(run.path, run.manifest, trial_id)
    return trial_id


def _data(
    events: pd.DataFrame, invocations: pd.DataFrame, findings: pd.DataFrame, failed: set[str],
    pages: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what the script needs; times are indices of events, and names stand in lists."""
    seqs = events["seq"].to_numpy()
    count = len(seqs)

    def index(seq: float) -> int:
        return count if pd.isna(seq) else min(int(np.searchsorted(seqs, seq)), count)

    requests = [str(name) for name in events["request_id"].dropna().unique()]
    number = {name: n for n, name in enumerate(requests)}
    stacks = {text: n for n, text in enumerate(events["stack"].dropna().unique())}
    kinds = {kind: n for n, kind in enumerate(events["kind"].unique())}
    ended = events["kind"].eq("done") & events["request_id"].isin(failed)
    found = [
        [index(row["seq"]), finding_name(row["rule"], row["cause"]), row["message"]]
        for row in findings.to_dict("records")
        if pd.notna(row["seq"])
    ]
    found.sort(key=lambda row: row[0])
    jumps = {
        "event": list(range(count)),
        "finding": sorted({row[0] for row in found if row[0] < count}),
        "failure": np.flatnonzero(ended).tolist(),
        "evict": np.flatnonzero(events["kind"].eq("evict")).tolist(),
    }
    last = int(seqs[-1])
    return {
        "pages": pages, "states": OWNED, "requests": requests, "kinds": list(kinds),
        "meaning": [EVENT_KINDS.get(kind, "") for kind in kinds],
        "seq": seqs.tolist(), "t": events["t_s"].round(6).tolist(),
        "kind": events["kind"].map(kinds).tolist(),
        "request": events["request_id"].map(number).fillna(-1).astype(int).tolist(),
        "stack": events["stack"].map(stacks).fillna(-1).astype(int).tolist(),
        "stacks": list(stacks), "more": _more(events),
        "spans": [
            [page, OWNED.index(state), number.get(owner, -1), index(begin),
             count if end >= last else index(end)]
            for page, state, owner, begin, end in owned_spans(events) if page < pages
        ],
        **_trie(events, index, count),
        "calls": [_call(row, index) for row in invocations.to_dict("records")],
        "findings": found, "jumps": jumps,
        "first": next((jumps[kind][0] for kind in ("finding", "failure") if jumps[kind]), 0),
    }  # fmt: skip


def _more(events: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Return by event the further columns that have a value."""
    more: dict[int, dict[str, Any]] = {}
    for name in _MORE:
        column = events[name].tolist()
        for n, value in enumerate(column):
            if isinstance(value, tuple) or pd.notna(value):
                more.setdefault(n, {})[name] = int(value) if isinstance(value, float) else value
    return more


def _trie(events: pd.DataFrame, index: Any, count: int) -> dict[str, Any]:
    """Return nodes (begin, end, node, parent, page, tokens), and references by node."""
    nodes: list[list[Any]] = []
    alive: dict[int, list[Any]] = {}
    references: dict[int, list[tuple[int, int]]] = {}
    wanted = events[events["kind"].isin(["create", "unlink", "node_overwritten", "reference"])]
    rows: list[Any] = list(
        wanted[["seq", "kind", "node", "parent", "pages", "tokens", "ref_count"]].itertuples()
    )
    for event in rows:
        node, at = int(event.node), index(event.seq)
        if event.kind == "reference":
            references.setdefault(node, []).append((at, int(event.ref_count)))
            continue
        if ended := alive.pop(node, None):
            ended[1] = at
        if event.kind == "create":
            tokens = " ".join(map(str, event.tokens))
            alive[node] = [at, count, node, int(event.parent), event.pages[0], tokens]
            nodes.append(alive[node])
    return {"nodes": nodes, "references": references}


def _call(row: Mapping[Any, Any], index: Any) -> list[Any]:
    """Return begin, end, number, phase, error, and for each row request, length and pages."""
    tables, lengths = row["block_tables"] or (), row["seq_lens"] or ()
    rows = [
        [request, lengths[n] if n < len(lengths) else None, tables[n] if n < len(tables) else ()]
        for n, request in enumerate(row["request_ids"] or ())
    ]
    error = row["error"] if isinstance(row["error"], str) else None
    return [
        index(row["seq"]),
        index(row["end_seq"]),
        row["invocation_id"],
        row["phase"],
        error,
        rows,
    ]
