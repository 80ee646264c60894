"""The sanitizer beside a recorder: every row is checked in its order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from checker_traces import (
    ILL,
    INVOCATIONS,
    WELL,
    A,
    B,
    arrow,
    one_token_in,
    recorder_of,
    recorder_row,
    well,
    what,
)
from trace_builder import Row, TraceBuilder

from analysis.recording.recorder import EVENT_FIELDS, INVOCATION_FIELDS
from analysis.sanitizer import check_tables, live
from analysis.sanitizer.live import Follower
from analysis.sanitizer.trace import Event, Invocation, UnknownInvocation, event_of, invocation_of


@pytest.mark.parametrize("story", [WELL, ILL], ids=["well", "ill"])
def test_rows_of_the_recorder_give_the_same(story):
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
def test_a_live_check_has_the_same_findings(story):
    assert what(followed(story, story.items)) == what(story.check(close=False))


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


def under_way(invocation):
    """What a recorder notes of an invocation that has not ended, by its number."""
    row = (
        invocation.invocation_id,
        invocation.phase,
        invocation.request_ids,
        invocation.seq,
        0,
        None,
    )
    return {invocation.invocation_id: row}


def test_an_invocation_that_never_finishes_is_counted_and_others_are_checked(monkeypatch):
    *items, last = (item for item in WELL.items if isinstance(item[1], Invocation))
    invocation = last[1]
    recorder = recorder_of([i for i in WELL.items if i[1] is not invocation], WELL.snapshots)
    recorder.under_way = under_way(invocation)
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
    """A recorder that gets another event right after its events were read."""

    late: list

    def __getattribute__(self, name):
        if name == "snapshots":  # they are read next
            events, late = super().__getattribute__("events"), super().__getattribute__("late")
            events += late
            late.clear()
        return super().__getattribute__(name)


@pytest.mark.parametrize("late", [item for item in WELL.items if isinstance(item[1], Event)][:-1])
def test_an_event_that_comes_while_the_rest_is_read_leaves_no_gap(late):
    source = recorder_of([item for item in WELL.items if item is not late], WELL.snapshots)
    recorder = Growing(**vars(source), late=[recorder_row(late[1])])
    follower = Follower(recorder, WELL.first, WELL.stride)
    follower.finish()
    assert follower.checker.findings.complete
    assert what(follower.checker.findings) == what(WELL.check(close=False))


@pytest.mark.parametrize("late", INVOCATIONS)
def test_an_invocation_that_finished_before_it_is_read_is_checked(late):
    # It was under way when that was looked at.
    invocation = dict(WELL.items)[late]
    source = recorder_of(WELL.items, WELL.snapshots)
    source.under_way = under_way(invocation)
    follower = Follower(source, WELL.first, WELL.stride)
    follower.finish()
    assert follower.checker.findings.complete
    assert what(follower.checker.findings) == what(WELL.check(close=False))


def test_events_after_the_end_of_the_check_make_no_gap():
    source = recorder_of(WELL.items, WELL.snapshots)
    last = max(seq for seq, _ in WELL.items)
    # Between them is an invocation that began when it had been looked at what was under way.
    fields = dict.fromkeys(EVENT_FIELDS) | {"seq": last + 5, "t_ns": 0, "kind": "memory"}
    recorder = Growing(**vars(source), late=[tuple(fields.values())])
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
    fields = {"mode": "sampled", "invocations": 0, "pages_read": 0, "slots_written": 0,
            "not_judged": [],
            "pages_offered": 0, "undecided": []}  # fmt: skip
    return fields | changes


def test_only_the_last_coverage_of_bytes_counts():
    story = well()
    story.event("checksums", coverage=coverage(not_judged=[1, 2]))
    story.event("checksums", coverage=coverage(invocations=3))
    findings = story.check()
    assert findings.complete, findings.notes
    assert "after 3 invocations" in findings.bytes_checked
    story.event("checksums", coverage=coverage(not_judged=[1]))
    (note,) = story.check().notes
    assert "bytes of 1 page were" in note


def test_unreadable_bytes_are_reported():
    story = well()
    story.event("checksums", coverage=coverage(not_judged=[1]))
    story.event("checksums", message="it is too far")
    assert story.check().notes == ["The bytes of pages were not checked: it is too far."]


def test_more_than_the_limit_is_skipped_and_counted(monkeypatch):
    monkeypatch.setattr(live, "_MOST_WAITING", 5)
    invocation = dict(WELL.items)[INVOCATIONS[0]]
    recorder = recorder_of([i for i in WELL.items if i[1] is not invocation], WELL.snapshots)
    recorder.under_way = under_way(invocation)
    follower = Follower(recorder, WELL.first, WELL.stride)
    for _ in range(len(WELL.items)):
        follower.step()
    # It finishes after all: too late to be checked, and it is counted once.
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
    invocation = live.decode("a", finishes=False)
    number = invocation.invocation_id
    recorded.event("invocation_unfinished", value=number, phase="decode", request_ids=["a"])
    for story in (live, recorded):
        story.token("a", 101)
    recorder = recorder_of([item for item in live.items if item[1] is not invocation])
    recorder.under_way = under_way(invocation)
    follower = Follower(recorder, live.first, live.stride)
    follower.finish()
    for findings in (follower.checker.findings, recorded.check(close=False)):
        assert "token-without-invocation" not in {finding.rule for finding in findings}
        assert findings.unchecked.requests == {"a": 1}


def test_unfinished_items_are_known_from_the_tables_too():
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
def test_nothing_is_reported_after_the_recording_was_full(last):
    # Events that were dropped have no place, invocations still have one.
    kept = [(seq, item) for seq, item in WELL.items if seq <= last or isinstance(item, Invocation)]
    findings = followed(WELL, kept, dropped=len(WELL.items) - len(kept))
    assert findings.notes
    assert not findings, str(findings)


def test_an_invocation_with_unreadable_arguments_keeps_its_requests():
    invocation = next(item for _, item in WELL.items if isinstance(item, Invocation))
    fields = dict(zip(INVOCATION_FIELDS, recorder_row(invocation), strict=True))
    for name in ("tokens", "seq_lens", "block_tables"):
        unread = invocation_of(tuple((fields | {name: None}).values()))
        assert isinstance(unread, UnknownInvocation)
        assert unread.request_ids == invocation.request_ids
    same = invocation_of(tuple(fields.values()))
    assert np.array_equal(same.tokens, invocation.tokens)
    assert same.seq == invocation.seq
