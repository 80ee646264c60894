"""A trial as a memory snapshot of PyTorch, for https://pytorch.org/memory_viz.

The page pool is a segment, and a page a block in it: an allocation when it is taken from the pool,
a requested free while it is in quarantine, a completed one when it is back in the pool. The stacks
are those of the engine, if they were recorded.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.runs.store import Run

PAGE_BYTES = 2**20
"""Nominal size of a page: the viewer shows bytes, and 1 MiB is easy to read as one page."""
_BASE = 2**32
_FRAME = re.compile(r"(?P<filename>.+):(?P<line>\d+) in (?P<name>.+)")
_ACTIONS = {"acquire": ("alloc",), "quarantined": ("free_requested",),
            "free": ("free_requested", "free_completed")}  # fmt: skip


def memory_snapshot(run: Run, trial_id: str) -> bytes:
    """Return a trial of a run as the bytes of a `.pickle` file; needs its recorded events."""
    (trial,) = run.trials[run.trials["trial_id"] == trial_id].to_dict("records")
    events = run.events[run.events["trial_id"] == trial_id].sort_values("seq")
    trace, used = _trace(events)
    size, in_use = int(trial["page_count"]) * PAGE_BYTES, len(used) * PAGE_BYTES
    segment = {
        "device": 0, "address": _BASE, "stream": 0, "segment_type": "large",
        "segment_pool_id": (0, 0), "is_expandable": False, "frames": [],
        "total_size": size, "allocated_size": in_use, "active_size": in_use,
        "requested_size": in_use,
        "blocks": list(_blocks(int(trial["page_count"]), used)),
    }  # fmt: skip
    whole = {"action": "segment_alloc", "addr": _BASE, "size": size, "stream": 0, "frames": []}
    return pickle.dumps({"segments": [segment], "device_traces": [[whole, *trace]]})


def _trace(events: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Return the entries of the trace, and the frames of each page that is in use at its end."""
    entries, used, requested = [], dict[int, list[dict[str, Any]]](), set[int]()
    columns = ["kind", "pages", "request_id", "t_s", "stack"]
    rows: list[Any] = list(events.loc[events["kind"].isin(_ACTIONS), columns].itertuples())
    for event in rows:
        frames = _frames(event.stack, event.request_id)
        for page in event.pages:
            for action in _ACTIONS[event.kind]:
                if action == "free_requested" and page in requested:
                    continue
                if action != "alloc" and page not in used:  # the recording began later
                    entries.append(_entry("alloc", page, 0.0, []))
                    used[page] = []
                entries.append(_entry(action, page, event.t_s, frames))
                if action == "alloc":
                    used[page] = frames
                elif action == "free_requested":
                    requested.add(page)
                else:
                    requested.discard(page)
                    used.pop(page)
    return entries, used


def _entry(action: str, page: int, t_s: float, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "action": action, "addr": _BASE + page * PAGE_BYTES, "size": PAGE_BYTES, "stream": 0,
        "time_us": round(t_s * 1e6), "frames": frames,
    }  # fmt: skip


def _frames(stack: object, request_id: object) -> list[dict[str, Any]]:
    """Return a frame that names the request, and those of a recorded stack, innermost first."""
    frames: list[dict[str, Any]] = []
    if isinstance(request_id, str):
        frames.append({"name": f"request {request_id}", "filename": "", "line": 0})
    for line in reversed(stack.splitlines() if isinstance(stack, str) else []):
        if found := _FRAME.match(line):
            frames.append({**found.groupdict(), "line": int(found["line"])})
    return frames


def _blocks(count: int, used: dict[int, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for page in range(count):
        state = "active_allocated" if page in used else "inactive"
        yield {
            "address": _BASE + page * PAGE_BYTES, "size": PAGE_BYTES,
            "requested_size": PAGE_BYTES, "state": state, "frames": used.get(page, []),
        }  # fmt: skip
