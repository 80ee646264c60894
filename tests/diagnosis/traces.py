"""Runs of known truth for explanations: a story's tables, with requests that ended as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthetic import request_row, trial_row
from trace_builder import Row, TraceBuilder

from analysis.runs.store import Run, to_frame

A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24)


def run_of(
    story: TraceBuilder,
    *requests: dict[str, Any],
    tops: dict[int, list[list[tuple[int, float]]]] | None = None,
    without: tuple[str, ...] = (),
    **trial: Any,
) -> Run:
    """Return a story as a run of one trial; `tops` are the likeliest tokens of each invocation's
    rows.

    Tables named by `without` are left out.
    """
    tables = story.tables()
    for invocation in tables["invocations"]:
        rows = (tops or {}).get(invocation["invocation_id"])
        if rows:
            invocation["top_tokens"] = [[token for token, _ in row] for row in rows]
            invocation["top_logprobs"] = [[log for _, log in row] for row in rows]
    tables = {name: [] if name in without else rows for name, rows in tables.items()}
    return Run(
        path=Path("trace"),
        manifest={},
        trials=to_frame("trials", [trial_row(**trial)]),
        requests=to_frame("requests", [request_row(**request) for request in requests]),
        findings=to_frame("findings", []),
        **{name: to_frame(name, rows) for name, rows in tables.items()},
    )


def wrong_page(a: str = "a", b: str = "b") -> Run:
    """Return a run in which `a` is wrong, from its token 2 on, because it reads a page of `b`.

    `b` wrote page 3 in invocation 0. In invocation 2 `a`'s block table has that page for its own
    page 1, and in invocation 3 again; only that one gives the first wrong token.
    """
    story = TraceBuilder()
    story.submit(b, B)
    story.allocate(b, 3)
    story.prefill(b)
    story.token(b, 25)
    story.submit(a, A)
    story.allocate(a, 1, 2)
    story.prefill(a)
    story.token(a, 17)
    story.allocate(b, 4)
    story.hold(a, 3)
    story.decode(Row(a, table=(3, 2)), b)
    story.token(a, 18)
    story.token(b, 26)
    story.decode(Row(a, table=(3, 2)), b)
    story.token(a, 33)
    story.token(b, 27)
    story.close()
    tops = {3: [[(33, -0.5), (19, -1.5)], [(27, -0.1), (28, -3.0)]]}
    return run_of(
        story,
        {"request_id": a, "prompt_tokens": A, "outcome": "wrong", "first_divergence": 2,
         "reference_tokens": [17, 18, 19], "tokens": [17, 18, 33], "text": "x",
         "submitted_s": 0.006, "latency_s": 0.03},
        {"request_id": b, "prompt_tokens": B, "outcome": "ok", "submitted_s": 0.001,
         "latency_s": 0.03},
        tops=tops,
    )  # fmt: skip


def short_pool(outcome: str = "empty", c: str = "c") -> Run:
    """Return a run in which `c` finds 1 page free of 8 and wants 3, for `a` leaked 4 and `b` has 2.

    `a` leaks pages 1 to 4 in event 6. With the outcome `lost` a worker dies of it in the next
    event.
    """
    story = TraceBuilder(page_count=8)
    story.submit("a", A)
    story.allocate("a", 1, 2, 3, 4)
    story.prefill("a")
    story.token("a", 17)
    story.drop("a", 1, 2, 3, 4)
    story.done("a")
    story.submit("b", B)
    story.allocate("b", 5, 6)
    story.submit(c, (31, 32, 33, 34, 35, 36, 37, 38, 39))
    story.event("acquire", None, (7,), free_pages=1, operation="allocate")
    with story.within("allocate", c):
        story.event("alloc_failed", c, free_pages=1, wanted=3)
        story.event("failed", c, message="CacheAllocationFailure: too few pages")
    dead = outcome == "engine_died"
    if dead:
        story.event("worker_died", message="The engine's worker w died: TypeError: nothing to add")
        story.event("stall", c, stall={"state": "unknown", "invocations": []})
    story.done(c, outcome)
    story.done("b", "engine_died" if dead else "ok")
    log = (
        'Traceback (most recent call last):\n  File "/x/site-packages/shortfin_apps/llm/a.py", line'
        " 7, in run\n    add(None)\nTypeError: nothing to add\n"
    )
    ended = {"tokens": [], "text": "", "reference_tokens": None, "latency_s": 0.01, "ttft_s": None}
    return run_of(
        story,
        {"request_id": "a", "prompt_tokens": A},
        {"request_id": "b", "prompt_tokens": B, "outcome": "engine_died" if dead else "ok"},
        {"request_id": c, "outcome": outcome, **ended},
        status="engine_died" if dead else "ok",
        engine_log=log,
    )
