"""The checker: the order of items, gaps, and unknown invocations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from checker_traces import ILL, ILL_FOUND, INVOCATIONS, WELL, B, recorder_row, well, what
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_builder import Row, TraceBuilder

from analysis.sanitizer.live import Follower
from analysis.sanitizer.trace import Event, Invocation, UnknownInvocation


def test_one_trace_is_correct_and_one_is_not():
    findings = WELL.check(close=False)
    assert not findings, str(findings)
    assert findings.rewritten == 4
    groups = {(group.rule, group.cause) for group in ILL.check(close=False).groups}
    assert len(groups) > 8
    assert ILL.check(close=False).first_wrong_data is not None


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


def test_a_gap_that_is_never_filled_is_skipped():
    checker = WELL.checker()
    invocation = next(place for place, item in WELL.items if isinstance(item, Invocation))
    for seq, item in WELL.items:
        if seq != invocation:
            checker.put(seq, item)
    checker.go()
    assert checker.waits_for == invocation
    checker.skip_gap()
    checker.go()
    assert checker.waits_for is None
    # What it left out comes too late then, and is not checked out of its order.
    count = checker.findings.invocations
    checker.put(invocation, dict(WELL.items)[invocation])
    checker.go()
    assert checker.findings.invocations == count


def test_skipping_without_a_gap_changes_nothing():
    checker = WELL.checker()
    checker.skip_gap()
    assert checker.waits_for is None
    checker.put(*WELL.items[0])
    checker.skip_gap()
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


@pytest.mark.parametrize("unread", INVOCATIONS)
def test_an_unreadable_invocation_is_no_finding(unread):
    checker = WELL.checker()
    for seq, item in WELL.items:
        if seq == unread:
            item = UnknownInvocation(item.invocation_id, item.request_ids)
        checker.put(seq, item)
    findings = checker.finish()
    assert not findings, str(findings)
    assert findings.unchecked.invocations
    assert "No rule was broken in what was checked" in findings.summary
    assert str(findings.unchecked) in findings.summary


@given(st.sets(st.sampled_from(INVOCATIONS)), st.booleans())
@settings(max_examples=40, deadline=None)
def test_unknown_invocations_are_counted_and_are_no_finding(unread, phases):
    checker = WELL.checker()
    for seq, item in WELL.items:
        if seq in unread:
            item = UnknownInvocation(
                item.invocation_id, item.request_ids, item.phase if phases else ""
            )
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
        checker.put(seq, UnknownInvocation(0, item.request_ids) if seq == INVOCATIONS[0] else item)
    assert checker.finish().first_wrong_data.invocation_id == wrong.invocation_id


def test_after_a_gap_only_rules_that_tolerate_gaps_are_checked():
    checker = ILL.checker()
    for seq, item in ILL.items[2:]:
        checker.put(seq, item)
    checker.skip_gap()
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
