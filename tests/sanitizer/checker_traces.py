"""Traces for the tests of the checker: `WELL` violates no rule, `ILL` many."""

from __future__ import annotations

from types import SimpleNamespace

from trace_builder import Row, TraceBuilder

from analysis.recording.recorder import EVENT_FIELDS, INVOCATION_FIELDS
from analysis.runs.tables import to_table
from analysis.sanitizer.trace import Event, Invocation

A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26, 27, 28)
MANIFEST = {"plan": {"releases": ("3.1.0",)}, "seed": 0, "command": "test"}
FAULT = ["fault:seq-len-short"]
ALARM = {"rule": "seq-len-mismatch", "cause": "underread"}


def one_token_in() -> TraceBuilder:
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 1, 2)
    story.prefill("a")
    story.token("a", 100)
    return story


def well() -> TraceBuilder:
    """Return a story of two requests that share a page, in which nothing is wrong."""
    story = one_token_in()
    node = story.publish("a", A, [1])
    story.reference(node, +1, "a")
    story.submit("b", (*A[:4], 99))
    story.match("b", 1, node=node)
    story.hold("b", 1)
    story.allocate("b", 3)
    invocation = story.decode("a", None, finishes=False)
    story.prefill("b")
    story.finish(invocation)
    story.token("a", 101)
    story.token("b", 102)
    story.decode("a", "b")
    story.close().evict(node)
    story.snapshot()
    return story


def ill() -> TraceBuilder:
    """Return a story in which much is wrong, in invocations, events, a snapshot and at the end."""
    story = TraceBuilder()
    story.submit("b", B)
    story.allocate("b", 5, 6, 7)
    story.prefill("b", None)
    story.token("b", 200)
    story.submit("a", A)
    story.allocate("a", 1, 2)
    story.prefill("a")
    story.publish("a", A, [3])
    story.token("a", 100)
    begun = story.decode("b", finishes=False)
    story.decode(Row("a", table=(1, 6), seq_len=8))
    story.finish(begun)
    story.free("b", 5)
    story.token("b", 201)
    story.decode(Row("b", tokens=(1,)))
    story.reference(1, -1, "b")
    story.event("nonfinite", "b", (5,), value=1)
    story.close()
    story.snapshot(free=[0, 1, 2])
    story.submit("late", A)
    return story


def what(findings) -> tuple:
    """Return all that findings say, to compare them."""
    scenes = [finding.context for finding in findings]
    counts = findings.events, findings.invocations, findings.slots_read, findings.rewritten
    return findings.rows("c"), scenes, counts, findings.notes


def length_short() -> TraceBuilder:
    """Return a story that sets off the alarm of a control."""
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 1, 2)
    story.prefill("a")
    story.token("a", 100)
    story.decode(Row("a", seq_len=6))
    return story.close()


WELL, ILL = well(), ill()
ILL_FOUND = what(ILL.check(close=False))
INVOCATIONS = [seq for seq, item in WELL.items if isinstance(item, Invocation)]


def recorder_row(item: Event | Invocation) -> tuple:
    """Return an item as the recorder keeps it."""
    if isinstance(item, Event):
        fields = item._asdict() | {"tokens_hit": None, "tokens_missed": None}
        fields["t_ns"] = round(item.t_s * 1e9)
        fields["pages"] = list(item.pages) or None
        return tuple(fields[name] for name in EVENT_FIELDS)
    arrays = {
        "tokens": item.tokens,
        "seq_lens": item.seq_lens,
        "start_positions": item.starts,
        "block_tables": item.tables,
    }
    shaped = {k: None if a is None else (a.shape, a.ravel().tolist()) for k, a in arrays.items()}
    fields = vars(item) | shaped | {"duration_s": 0.0, "error": None, "scores": None}
    fields |= {"rows": item.real, "batch_size": len(item.tokens)}
    fields["results"] = item.result_tokens and (item.result_tokens, item.result_digests)
    return tuple(fields[name] for name in INVOCATION_FIELDS)


def recorder_of(items, snapshots=()) -> SimpleNamespace:
    """Return what a follower takes for a recorder, with these items of a story."""
    recorder = SimpleNamespace(
        events=[], invocations=[], snapshots=list(snapshots), skipped=[], faults=[], under_way={},
        unkept=[], dropped={"events": 0, "invocations": 0, "snapshots": 0},
    )  # fmt: skip
    for _, item in items:
        if item is not None:
            rows = recorder.events if isinstance(item, Event) else recorder.invocations
            rows.append(recorder_row(item))
    return recorder


def arrow(story: TraceBuilder, trial_id: str = "c"):
    return {name: to_table(name, rows) for name, rows in story.tables(trial_id).items()}


def found(story: TraceBuilder, trial_id: str) -> list:
    return story.check(close=False).rows(trial_id)
