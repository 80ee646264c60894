"""The stream is checked in its order, whatever it comes by: live, from tables, or in pieces."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import request_row, trial_row
from trace_builder import Row, TraceBuilder

from analysis.cli import main
from analysis.core.errors import RunError
from analysis.recording.recorder import EVENT_FIELDS, INVOCATION_FIELDS
from analysis.runs.store import RunWriter, load_run, pack_run, trial_tables
from analysis.runs.tables import to_table
from analysis.sanitizer import check_run, check_tables, live
from analysis.sanitizer.live import Follower
from analysis.sanitizer.stream import event_of, invocation_of
from analysis.sanitizer.world import Event, Invocation, Unread

A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26, 27, 28)
MANIFEST = {"plan": {"releases": ("3.1.0",)}, "seed": 0, "command": "test"}
FAULT = ["fault:seq-len-short"]


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
    invocation = story.decode("a", None, lands=False)
    story.prefill("b")
    story.land(invocation)
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
    begun = story.decode("b", lands=False)
    story.decode(Row("a", table=(1, 6), seq_len=8))
    story.land(begun)
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
    scenes = [finding.scene for finding in findings]
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


def test_the_two_stories_are_well_and_ill():
    findings = WELL.check(close=False)
    assert not findings, str(findings)
    assert findings.rewritten == 4
    groups = {(group.rule, group.cause) for group in ILL.check(close=False).groups}
    assert len(groups) > 8
    assert ILL.check(close=False).first_wrong_data is not None


# -- order and gaps ----------------------------------------------------------------------------


@given(st.permutations(range(len(ILL.items))), st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_in_which_it_comes_does_not_matter(order, data):
    checker = ILL.checker()
    pauses = data.draw(st.sets(st.integers(0, len(order) - 1)))
    for number, index in enumerate(order):
        checker.put(*ILL.items[index])
        if number in pauses:
            checker.go()
    assert what(checker.finish()) == ILL_FOUND


@given(st.integers(0, len(ILL.items) - 1))
@settings(max_examples=len(ILL.items), deadline=None)
def test_nothing_past_a_gap_is_checked_until_it_is_filled(missing):
    checker = ILL.checker()
    for index, item in enumerate(ILL.items):
        if index != missing:
            checker.put(*item)
    seq = ILL.items[missing][0]
    before = sorted(place for place, _ in ILL.items if place < seq)
    assert checker.go() == len(before)
    assert checker.go() == 0
    last = missing == len(ILL.items) - 1
    assert checker.waits_for == (None if last else seq)
    assert all(finding.seq < seq for finding in checker.findings)
    checker.put(*ILL.items[missing])
    assert checker.go() == len(ILL.items) - len(before)
    assert checker.waits_for is None
    assert what(checker.finish()) == ILL_FOUND


def test_a_gap_that_nobody_fills_is_gone_over():
    checker = WELL.checker()
    invocation = next(place for place, item in WELL.items if isinstance(item, Invocation))
    for seq, item in WELL.items:
        if seq != invocation:
            checker.put(seq, item)
    checker.go()
    assert checker.waits_for == invocation
    checker.go_over_gap()
    checker.go()
    assert checker.waits_for is None
    # What it left out comes too late then, and is not checked out of its order.
    count = checker.findings.invocations
    checker.put(invocation, dict(WELL.items)[invocation])
    checker.go()
    assert checker.findings.invocations == count


def test_going_over_no_gap_changes_nothing():
    checker = WELL.checker()
    checker.go_over_gap()
    assert checker.waits_for is None
    checker.put(*WELL.items[0])
    checker.go_over_gap()
    assert checker.go() == 1


def test_a_turn_ends_after_the_item_under_way():
    checker = ILL.checker()
    for item in ILL.items:
        checker.put(*item)
    for count in range(1, len(ILL.items) + 1):
        assert checker.go(until_s=0.0) == 1
        assert (checker.waits_for is None) == (count == len(ILL.items))
    assert what(checker.finish()) == ILL_FOUND


def test_items_from_before_the_first_snapshot_are_left_out():
    story = well()
    checker = story.checker()
    checker.put(0, Event(**dict.fromkeys(Event._fields) | {"kind": "acquire", "pages": (1, 1)}))
    for item in story.items:
        checker.put(*item)
    assert not checker.finish()


def test_an_inconsistent_snapshot_is_not_compared():
    story = well()
    story.snapshot(free=[], consistent=False)
    assert not story.check()


INVOCATIONS = [seq for seq, item in WELL.items if isinstance(item, Invocation)]


@pytest.mark.parametrize("unread", INVOCATIONS)
def test_an_invocation_that_could_not_be_read_is_nobodys_fault(unread):
    checker = WELL.checker()
    for seq, item in WELL.items:
        if seq == unread:
            item = Unread(item.invocation_id, item.request_ids)
        checker.put(seq, item)
    findings = checker.finish()
    assert not findings, str(findings)
    assert findings.unchecked.invocations
    assert "No rule was broken in what was checked" in findings.summary
    assert str(findings.unchecked) in findings.summary


@given(st.sets(st.sampled_from(INVOCATIONS)), st.booleans())
@settings(max_examples=40, deadline=None)
def test_invocations_that_are_not_known_are_counted_and_blamed_on_nobody(unread, phases):
    checker = WELL.checker()
    for seq, item in WELL.items:
        if seq in unread:
            item = Unread(item.invocation_id, item.request_ids, item.phase if phases else "")
        checker.put(seq, item)
    findings = checker.finish()
    assert not findings, str(findings)
    assert findings.complete == (not unread)
    assert findings.invocations + len(unread) == len(INVOCATIONS)
    counted = findings.unchecked.invocations
    # Where the phase is known it is known how each request went on, and only these are unchecked.
    assert counted == len(unread) if phases else counted >= len(unread)


def test_what_is_known_again_after_an_unread_invocation_is_checked():
    story = well()
    story.submit("c", B)
    story.allocate("c", 2, 4)
    story.prefill("c")
    story.token("c", 100)
    wrong = story.decode(Row("c", table=(5, 4)))
    checker = story.checker()
    for seq, item in story.items:
        checker.put(seq, Unread(0, item.request_ids) if seq == INVOCATIONS[0] else item)
    assert checker.finish().first_wrong_data.invocation_id == wrong.invocation_id


def test_after_a_gap_only_what_bears_it_is_checked():
    checker = ILL.checker()
    for seq, item in ILL.items[2:]:
        checker.put(seq, item)
    checker.go_over_gap()
    findings = checker.finish()
    rules = {finding.rule for finding in findings}
    assert {"nonfinite-kv", "stuck-request", "seq-len-mismatch"} <= rules
    assert not rules & {
        "double-allocation",
        "double-free",
        "free-while-referenced",
        "free-count-mismatch",
        "page-leak",
        "not-quiescent",
        "state-divergence",
        "ref-count-mismatch",
    }
    assert findings.unchecked.invocations == findings.invocations


def test_a_snapshot_is_found_when_its_event_is():
    # The recorder keeps the snapshot first; it may do so while the follower is looking.
    story = TraceBuilder()
    story.snapshot(free=[0])

    class Late(SimpleNamespace):
        snapshots = ()

        @property
        def events(self):
            self.snapshots = story.snapshots
            return [recorder_row(item) for _, item in story.items]

    nothing = {"events": 0, "invocations": 0, "snapshots": 0}
    late = Late(invocations=[], skipped=[], dropped=nothing, faults=[], under_way={}, unkept=[])
    follower = Follower(late, story.first, story.stride)
    follower.step()
    assert follower.checker.findings


# -- as the recorder has it, and as tables -----------------------------------------------------


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


@pytest.mark.parametrize("story", [WELL, ILL], ids=["well", "ill"])
def test_rows_of_the_recorder_say_the_same(story):
    checker = story.checker()
    for seq, item in story.items:
        if isinstance(item, Event):
            checker.put(seq, event_of(recorder_row(item)))
        elif item is not None:
            checker.put(seq, invocation_of(recorder_row(item)))
        else:
            checker.put(seq, None)
    assert what(checker.finish()) == what(story.check(close=False))


def followed(story: TraceBuilder, items, dropped: int = 0):
    """Return what a follower finds of a recorder that has these items of a story."""
    recorder = SimpleNamespace(
        events=[recorder_row(item) for _, item in items if isinstance(item, Event)],
        invocations=[recorder_row(item) for _, item in items if isinstance(item, Invocation)],
        snapshots=story.snapshots,
        skipped=[],
        dropped={"events": dropped, "invocations": 0, "snapshots": 0},
        faults=[],
        under_way={},
        unkept=[],
    )
    follower = Follower(recorder, story.first, story.stride)
    while follower.step():
        pass
    follower.finish()
    return follower.checker.findings


@pytest.mark.parametrize("story", [WELL, ILL], ids=["well", "ill"])
def test_a_follower_of_the_recorder_says_the_same(story):
    assert what(followed(story, story.items)) == what(story.check(close=False))


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


def stalled(follower: Follower, monkeypatch) -> None:
    """Have a follower believe that it has waited for a long time."""
    monkeypatch.setattr(live, "_PATIENCE_S", -1.0)
    while follower.step():
        pass
    follower.step()
    follower.step()


@pytest.mark.parametrize("story", [WELL, ILL], ids=["well", "ill"])
@pytest.mark.parametrize("kind", [Event, Invocation])
def test_what_fills_a_gap_late_is_checked_in_its_order(story, kind, monkeypatch):
    for missing in [item for item in story.items if isinstance(item[1], kind)][:-1]:
        recorder = recorder_of([i for i in story.items if i is not missing], story.snapshots)
        if kind is Invocation:
            number, invocation = missing[1].invocation_id, missing[1]
            row = (number, invocation.phase, invocation.request_ids, invocation.seq, 0, None)
            recorder.under_way = {number: row}
        follower = Follower(recorder, story.first, story.stride)
        stalled(follower, monkeypatch)
        findings = follower.checker.findings
        assert findings.waits is not None
        assert not findings.complete
        assert all(finding.seq < missing[0] for finding in findings)
        recorder.under_way = {}
        late = recorder.events if kind is Event else recorder.invocations
        late.append(recorder_row(missing[1]))
        while follower.step():
            pass
        follower.finish()
        assert findings.waits is None
        assert not findings.unchecked
        assert what(findings) == what(story.check(close=False))


def test_an_invocation_that_never_lands_is_counted_and_leaves_the_rest_checked(monkeypatch):
    *items, last = (item for item in WELL.items if isinstance(item[1], Invocation))
    invocation = last[1]
    recorder = recorder_of([i for i in WELL.items if i[1] is not invocation], WELL.snapshots)
    row = (
        invocation.invocation_id,
        invocation.phase,
        invocation.request_ids,
        invocation.seq,
        0,
        None,
    )
    recorder.under_way = {invocation.invocation_id: row}
    follower = Follower(recorder, WELL.first, WELL.stride)
    stalled(follower, monkeypatch)
    follower.finish()
    findings = follower.checker.findings
    assert findings.invocations == len(items)
    assert findings.unchecked.invocations == 1
    assert set(findings.unchecked.requests) == set(invocation.request_ids)
    assert not findings, str(findings)
    assert "No rule was broken in what was checked" in str(findings)
    assert "unchecked: 1 invocation of" in str(findings)


def test_an_operation_that_never_ends_leaves_the_rules_of_data():
    story = well()
    story.submit("c", B)
    story.allocate("c", 2, 4)
    story.prefill("c")
    free = story.event("memory", value=1)  # its place is the one that stays empty
    story.token("c", 100)
    wrong = story.decode(Row("c", table=(5, 4)))
    recorder = recorder_of([i for i in story.items if i[0] != free], story.snapshots)
    follower = Follower(recorder, story.first, story.stride)
    follower.finish()
    findings = follower.checker.findings
    assert findings.first_wrong_data.invocation_id == wrong.invocation_id
    assert findings.unchecked.invocations == 1
    assert findings.notes


class Growing(SimpleNamespace):
    """A recorder that is told something more right after its events were read."""

    late: list

    def __getattribute__(self, name):
        if name == "snapshots":  # they are read next
            events, late = super().__getattribute__("events"), super().__getattribute__("late")
            events += late
            late.clear()
        return super().__getattribute__(name)


@pytest.mark.parametrize("late", [item for item in WELL.items if isinstance(item[1], Event)][:-1])
def test_an_event_that_comes_while_the_rest_is_read_leaves_no_gap(late):
    told = recorder_of([item for item in WELL.items if item is not late], WELL.snapshots)
    recorder = Growing(**vars(told), late=[recorder_row(late[1])])
    follower = Follower(recorder, WELL.first, WELL.stride)
    follower.finish()
    assert follower.checker.findings.complete
    assert what(follower.checker.findings) == what(WELL.check(close=False))


@pytest.mark.parametrize("late", INVOCATIONS)
def test_an_invocation_that_has_landed_by_the_time_that_it_is_read_is_checked(late):
    # It was under way when that was looked at.
    invocation = dict(WELL.items)[late]
    told = recorder_of(WELL.items, WELL.snapshots)
    row = (
        invocation.invocation_id,
        invocation.phase,
        invocation.request_ids,
        invocation.seq,
        0,
        None,
    )
    told.under_way = {invocation.invocation_id: row}
    follower = Follower(told, WELL.first, WELL.stride)
    follower.finish()
    assert follower.checker.findings.complete
    assert what(follower.checker.findings) == what(WELL.check(close=False))


def test_what_is_told_after_the_check_began_to_end_makes_no_gap():
    told = recorder_of(WELL.items, WELL.snapshots)
    last = max(seq for seq, _ in WELL.items)
    # Between them is an invocation that began when it had been looked at what was under way.
    fields = dict.fromkeys(EVENT_FIELDS) | {"seq": last + 5, "t_ns": 0, "kind": "memory"}
    recorder = Growing(**vars(told), late=[tuple(fields.values())])
    follower = Follower(recorder, WELL.first, WELL.stride)
    follower.finish()
    assert follower.checker.findings.complete


def test_all_invocations_of_a_full_recording_are_counted():
    recorder = recorder_of(WELL.items, WELL.snapshots)
    recorder.dropped["invocations"], recorder.unkept = 5, [["a"], ["a", "b"]]
    follower = Follower(recorder, WELL.first, WELL.stride)
    follower.finish()
    unchecked = follower.checker.findings.unchecked
    assert unchecked.invocations == 5
    assert dict(unchecked.requests) == {"a": 2, "b": 1}


def coverage(**changes):
    said = {"mode": "sampled", "invocations": 0, "pages_read": 0, "slots_written": 0,
            "not_judged": [],
            "pages_offered": 0, "undecided": []}  # fmt: skip
    return said | changes


def test_only_the_last_word_on_the_bytes_of_pages_counts():
    story = well()
    story.event("checksums", coverage=coverage(not_judged=[1, 2]))
    story.event("checksums", coverage=coverage(invocations=3))
    findings = story.check()
    assert findings.complete, findings.notes
    assert "after 3 invocations" in findings.bytes_checked
    story.event("checksums", coverage=coverage(not_judged=[1]))
    (note,) = story.check().notes
    assert "(1 page)" in note


def test_that_bytes_could_not_be_read_is_said():
    story = well()
    story.event("checksums", coverage=coverage(not_judged=[1]))
    story.event("checksums", message="it is too far")
    assert story.check().notes == ["The bytes of pages were not checked: it is too far."]


def test_more_than_is_kept_is_gone_over_and_counted(monkeypatch):
    monkeypatch.setattr(live, "_MOST_WAITING", 5)
    invocation = dict(WELL.items)[INVOCATIONS[0]]
    recorder = recorder_of([i for i in WELL.items if i[1] is not invocation], WELL.snapshots)
    row = (
        invocation.invocation_id,
        invocation.phase,
        invocation.request_ids,
        invocation.seq,
        0,
        None,
    )
    recorder.under_way = {invocation.invocation_id: row}
    follower = Follower(recorder, WELL.first, WELL.stride)
    for _ in range(len(WELL.items)):
        follower.step()
    # It lands after all: too late to be checked, and it is counted once.
    recorder.under_way = {}
    recorder.invocations.append(recorder_row(invocation))
    follower.finish()
    findings = follower.checker.findings
    assert not findings, str(findings)
    assert findings.unchecked.requests["a"] == sum(
        "a" in item.request_ids for _, item in WELL.items if isinstance(item, Invocation)
    )


def test_a_token_that_came_before_its_invocation_had_ended_has_an_invocation():
    # On 3.1.0 a row's result is there while those of the rows behind it are still awaited.
    live, recorded = one_token_in(), one_token_in()
    invocation = live.decode("a", lands=False)
    number = invocation.invocation_id
    recorded.event("invocation_unfinished", value=number, phase="decode", request_ids=["a"])
    for story in (live, recorded):
        story.token("a", 101)
    recorder = recorder_of([item for item in live.items if item[1] is not invocation])
    row = (
        invocation.invocation_id,
        invocation.phase,
        invocation.request_ids,
        invocation.seq,
        0,
        None,
    )
    recorder.under_way = {invocation.invocation_id: row}
    follower = Follower(recorder, live.first, live.stride)
    follower.finish()
    for findings in (follower.checker.findings, recorded.check(close=False)):
        assert "token-without-invocation" not in {finding.rule for finding in findings}
        assert findings.unchecked.requests == {"a": 1}


def test_what_had_not_ended_is_known_from_the_tables_too():
    story = well()
    story.submit("c", A)
    number = max(i.invocation_id for _, i in story.items if isinstance(i, Invocation)) + 1
    story.event("invocation_unfinished", value=number, phase="prefill", request_ids=["c"])
    findings = check_tables(arrow(story), story.stride)
    assert findings.unchecked.invocations == 1
    assert findings.unchecked.requests["c"] == 1
    story.event("unfinished", operation="free")
    findings = check_tables(arrow(story), story.stride)
    assert findings.notes


@pytest.mark.parametrize("last", range(INVOCATIONS[1] + 1, INVOCATIONS[-1], 2))
def test_nothing_is_blamed_after_the_recording_was_full(last):
    # Events that were dropped have no place, invocations still have one.
    kept = [(seq, item) for seq, item in WELL.items if seq <= last or isinstance(item, Invocation)]
    findings = followed(WELL, kept, dropped=len(WELL.items) - len(kept))
    assert findings.notes
    assert not findings, str(findings)


def test_an_invocation_whose_arguments_could_not_be_read_keeps_its_requests():
    invocation = next(item for _, item in WELL.items if isinstance(item, Invocation))
    fields = dict(zip(INVOCATION_FIELDS, recorder_row(invocation), strict=True))
    for name in ("tokens", "seq_lens", "block_tables"):
        unread = invocation_of(tuple((fields | {name: None}).values()))
        assert isinstance(unread, Unread)
        assert unread.request_ids == invocation.request_ids
    same = invocation_of(tuple(fields.values()))
    assert np.array_equal(same.tokens, invocation.tokens)
    assert same.seq == invocation.seq


def arrow(story: TraceBuilder, trial_id: str = "c"):
    return {name: to_table(name, rows) for name, rows in story.tables(trial_id).items()}


@pytest.mark.parametrize("story", [WELL, ILL], ids=["well", "ill"])
def test_tables_say_the_same(story):
    assert what(check_tables(arrow(story), story.stride)) == what(story.check(close=False))


def test_tables_without_snapshots_or_events_are_not_checked():
    tables = arrow(WELL)
    for name in ("snapshots", "events"):
        assert check_tables({k: t for k, t in tables.items() if k != name}, 4) is None
    assert check_tables({**tables, "snapshots": tables["snapshots"][:0]}, 4) is None


def test_snapshots_without_a_place_are_an_error():
    rows = WELL.tables()
    for row in rows["snapshots"]:
        row["seq"] = None
    with pytest.raises(RunError, match="record the run again"):
        check_tables({name: to_table(name, table) for name, table in rows.items()}, 4)


@pytest.mark.parametrize("lacking", ["seq", "end_seq", "request_ids"])
def test_invocations_without_a_place_or_requests_are_an_error(lacking):
    rows = WELL.tables()
    for row in rows["invocations"]:
        row[lacking] = None
    with pytest.raises(RunError, match="no place among the events or no requests"):
        check_tables({name: to_table(name, table) for name, table in rows.items()}, 4)


def test_events_alone_are_checked_too():
    tables = arrow(WELL)
    del tables["invocations"]
    findings = check_tables(tables, WELL.stride)
    assert findings.invocations == 0
    assert findings.events == sum(isinstance(item, Event) for _, item in WELL.items)


CONFLICTS = pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"misfiled": [1]}, "wrong-key"),
        ({"free": [0, 2, 2, 3, 4, 5, 6, 7]}, "two-states"),
        ({"free": [0, 1, 2, 3, 4, 5, 6, 7]}, "two-states"),
    ],
    ids=["misfiled", "twice free", "free and cached"],
)


def conflicting(changes) -> TraceBuilder:
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 1, 2)
    story.prefill("a")
    story.publish("a", A, [1])
    story.close().snapshot(**changes)
    return story


@CONFLICTS
def test_conflicts_are_told_of_a_live_snapshot(changes, cause):
    assert conflicting(changes).check().group("state-divergence", cause) is not None


@CONFLICTS
def test_conflicts_are_told_of_a_recorded_snapshot(changes, cause):
    assert check_tables(arrow(conflicting(changes)), 4).group("state-divergence", cause) is not None


# -- runs --------------------------------------------------------------------------------------


@pytest.fixture
def write_run(tmp_path):
    """Write a run: trial id -> its story (None if nothing was recorded) and changes of its row."""

    def write(**trials):
        writer = RunWriter.create(tmp_path / "run", MANIFEST)
        for trial_id, (story, changes) in trials.items():
            tables = {} if story is None else story.tables(trial_id)
            writer.write_trial(
                trial_row(trial_id=trial_id, **changes), [request_row(trial_id=trial_id)], **tables
            )
        return tmp_path / "run"

    return write


def found(story: TraceBuilder, trial_id: str) -> list:
    return story.check(close=False).rows(trial_id)


@pytest.mark.parametrize("packed", [False, True], ids=["trials", "packed"])
def test_a_run_says_what_the_stream_said(write_run, tmp_path, packed):
    run = write_run(c1=(ILL, {}), c2=(WELL, {}), c3=(ILL, {"release": "3.9.0"}), c4=(None, {}))
    if packed:
        run = pack_run(run, tmp_path / "packed")
    said = {}
    settings = check_run(
        run, on_trial=lambda trial, f: said.update({trial: None if f is None else f.rows(trial)})
    )
    assert said == {"c1": found(ILL, "c1"), "c2": [], "c3": found(ILL, "c3"), "c4": None}
    old, new = settings
    assert (old.name, new.name) == ("3.1.0 none", "3.9.0 none")
    assert (old.trials, old.unobserved, new.trials, new.unobserved) == (3, 1, 1, 0)
    ill, well_ = ILL.check(close=False), WELL.check(close=False)
    assert old.events == ill.events + well_.events
    assert old.invocations == ill.invocations + well_.invocations
    assert new.invocations == ill.invocations
    assert list(new.groups) == [(group.rule, group.cause) for group in ill.groups]
    for members in old.groups.values():
        assert [trial for trial, _ in members] == ["c1"]
    assert [old.void, new.void] == [False, False]  # no control was asked for


def test_control_trials_are_left_out_of_a_run_unless_asked_for(write_run):
    run = write_run(c=(WELL, {}), control=(length_short(), {"treatments": FAULT}))
    whole, plain = load_run(run, controls=True), load_run(run)
    for name in ("trials", "requests", "events", "invocations", "snapshots"):
        assert set(getattr(whole, name)["trial_id"]) == {"c", "control"}
        assert set(getattr(plain, name)["trial_id"]) == {"c"}
        assert list(getattr(plain, name).index) == list(range(len(getattr(plain, name))))
    assert {trial for trial, _ in trial_tables(run, ["events"])} == {"c", "control"}


@pytest.mark.parametrize(
    ("control", "alarms"), [(length_short(), 1), (WELL, 0), (ILL, 0), (None, 0)]
)
def test_a_run_is_void_whose_control_stays_silent(write_run, control, alarms):
    run = write_run(
        c=(WELL, {}),
        treated=(WELL, {"treatments": ["zero-pages"]}),
        trie=(WELL, {"prefix_sharing": "trie"}),
        control=(control, {"treatments": FAULT}),
    )
    plain, treated, trie = check_run(run)
    assert (plain.controls, plain.alarms, plain.void) == (1, alarms, not alarms)
    assert not plain.groups  # what a planted fault broke is no finding
    assert plain.trials == 1
    # A control is one of its own treatments only: these may blind the sanitizer.
    for other in (treated, trie):
        assert (other.controls, other.void) == (0, False)


def test_a_control_in_a_treated_arm_is_that_arms(write_run):
    names = ["lock-cache"]
    run = write_run(
        c=(WELL, {}),
        treated=(WELL, {"treatments": names}),
        control=(WELL, {"treatments": [*names, *FAULT]}),
    )
    plain, treated = check_run(run)
    assert (plain.controls, plain.void) == (0, False)
    assert (treated.controls, treated.alarms, treated.void) == (1, 0, True)


@pytest.mark.parametrize(
    ("injected", "counts"),
    [
        (None, (1, 1, 0)),
        ({"request_id": "a"}, (1, 1, 0)),
        ({"request_id": "b"}, (1, 0, 0)),
        ({"page": 77}, (1, 0, 0)),
        ("nothing", (0, 0, 1)),
    ],
)
def test_an_alarm_must_name_what_was_injected(write_run, injected, counts):
    kept = {"injected": None if injected is None else injected != "nothing"}
    kept["injection"] = injected if isinstance(injected, dict) else None
    run = write_run(c=(WELL, {}), control=(length_short(), {"treatments": FAULT, **kept}))
    (checked,) = check_run(run)
    assert (checked.controls, checked.alarms, checked.idle) == counts


def test_every_control_must_sound_the_alarm(write_run):
    run = write_run(
        c=(WELL, {}),
        one=(length_short(), {"treatments": FAULT}),
        two=(WELL, {"treatments": FAULT, "repeat": 1}),
    )
    (checked,) = check_run(run)
    assert (checked.controls, checked.alarms, checked.void) == (2, 1, True)


# -- the command line --------------------------------------------------------------------------


@pytest.fixture
def cachelab(monkeypatch, capsys):
    """Run the command line here; return its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cachelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


CONTROL = (length_short(), {"treatments": FAULT})


def test_a_clean_run_exits_with_0(write_run, cachelab):
    status, stdout, stderr = cachelab("check", write_run(c=(WELL, {}), control=CONTROL))
    assert (status, stderr) == (0, "")
    assert "3.1.0 none: 1 of 1 trials checked" in stdout
    assert "1 of 1 planted faults found" in stdout
    assert "No rule was broken." in stdout


def test_what_was_not_checked_is_undecided_and_exits_with_3(tmp_path, cachelab):
    story = well()
    story.submit("c", A)
    number = max(i.invocation_id for _, i in story.items if isinstance(i, Invocation)) + 1
    story.event("invocation_unfinished", value=number, phase="prefill", request_ids=["c"])
    story.done("c")
    writer = RunWriter.create(tmp_path / "run", MANIFEST)
    requests = [request_row(trial_id="one", request_id="c", outcome="wrong")]
    writer.write_trial(trial_row(trial_id="one"), requests, **story.tables("one"))
    (checked,) = check_run(tmp_path / "run")
    assert not checked.complete
    assert checked.unchecked_wrong == ["one/c"]
    status, stdout, stderr = cachelab("check", tmp_path / "run")
    assert status == 3
    assert "No rule was broken in what was checked." in stdout
    assert "Unchecked: 1 invocation of one/c (1)" in stdout
    assert "wrong were: one/c" in stdout
    assert "undecided" in stderr


def test_a_broken_rule_exits_with_4_and_is_shown(write_run, cachelab):
    status, stdout, stderr = cachelab("check", write_run(c=(ILL, {}), other=(WELL, {})))
    assert (status, stderr) == (4, "")
    assert "no fault was planted as a control" in stdout
    for finding in ILL.check(close=False):
        assert f"{finding.rule} ({finding.cause})" in stdout
        assert finding.text in stdout


def test_a_silent_control_exits_with_3_whatever_was_found(write_run, cachelab):
    run = write_run(c=(ILL, {}), control=(WELL, {"treatments": FAULT}))
    status, stdout, stderr = cachelab("check", run)
    assert status == 3
    assert "0 of 1 planted faults found (fault:seq-len-short): VOID" in stdout
    assert len(stderr.splitlines()) == 1


def test_json_is_one_finding_a_line(write_run, cachelab):
    run = write_run(c=(ILL, {}), d=(WELL, {}), control=CONTROL)
    status, stdout, _ = cachelab("check", run, "--json")
    assert status == 4
    assert [json.loads(line) for line in stdout.splitlines()] == found(ILL, "c")


@pytest.mark.parametrize(
    "place", ["nothing", "no run", "no recordings", "no events", "only controls"]
)
def test_what_cannot_be_checked_is_one_sentence(write_run, cachelab, tmp_path, place):
    if place == "no recordings":
        path = write_run(c=(None, {}), d=(None, {}))
    elif place == "only controls":
        path = write_run(control=CONTROL)
    elif place == "no events":
        path = write_run(c=(None, {}), control=(None, {"treatments": FAULT}))
    else:
        path = tmp_path / "place"
    if place == "no run":
        path.mkdir()
        (path / "letter.txt").write_text("mine")
    status, stdout, stderr = cachelab("check", path)
    assert (status, stdout) == (1, "")
    assert len(stderr.splitlines()) == 1
    assert str(path) in stderr
