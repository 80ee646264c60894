"""Each rule: traces that violate it are found at their step, and near misses are not."""

from __future__ import annotations

from collections.abc import Callable

import cases_accounting  # noqa: F401
import cases_in_flight  # noqa: F401
import cases_quiescence  # noqa: F401
import cases_trie  # noqa: F401
import pytest
from cases_liveness import locked
from cases_provenance import (
    a_request_under_way_before_the_watching_began,
    beams_that_share_a_requests_name,
    the_same_prefix_is_written_again,
)
from cases_results import a_choice_after_an_invocation_that_could_not_be_read
from cases_tables import a_page_twice, another_prefix_written_to_a_cached_page
from rule_cases import CASES, SILENT, A, B, Case, begin, ready
from trace_builder import Row, TraceBuilder

from analysis.sanitizer.rules import RULES, consequence_of
from analysis.sanitizer.trace import Invocation
from analysis.snapshots.snapshot import Node


def test_the_oldest_lock_is_named():
    story = TraceBuilder()
    locked(story, ("references", 1.6), ("pool", 3.0), ("cache", 2.0))
    text = story.check(close=False).group("stuck-request", "lock-held").first.text
    assert "thread pool's has held the lock of the pool for 3 s" in text


def test_a_request_with_progress_until_its_process_was_killed_is_no_finding():
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    story.event("cut", late_s=0.007, request_ids=["a"])
    findings = story.check(close=False)
    assert not findings.groups
    assert any("at most 7 ms before its process; 1 request has" in n for n in findings.notes)


@pytest.mark.parametrize("page", [999, 8, -3])
def test_a_page_beyond_the_pool_is_reported_as_such(page: int) -> None:
    story = TraceBuilder()
    begin(story, "a", A, 1, 2)
    story.prefill(Row("a", table=(1, page)))
    findings = story.check()
    found = findings.group("block-table-mismatch").first
    assert (found.cause, found.page) == ("no-such-page", page)
    assert found.text == (
        f"prefill of a: block 1 of the block table references page {page}, which is beyond the pool"
        " of 8 pages."
    )
    assert findings.group("position-mismatch").first.text == (
        f"prefill of a: writes position 4 to page {page}, which is beyond the pool of 8 pages."
    )
    assert "does not exist" in consequence_of("block-table-mismatch", found.cause)


@pytest.mark.parametrize(
    ("page", "cause"),
    [(5, "cached-page"), (6, "leaked-page"), (3, "free-page"), (0, "padding-page")],
)
def test_a_page_without_a_holder_is_no_page_of_others(page: int, cause: str) -> None:
    story = TraceBuilder(nodes=[Node(1, 0, 5, (91, 92, 93, 94), 0, True)], taken=(6,))
    begin(story, "a", A, 1, 2)
    story.prefill(Row("a", table=(1, page)))
    found = story.check(close=False).group("block-table-mismatch").first
    assert (found.cause, found.page) == (cause, page)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.write.__name__)
def test_a_broken_rule_is_reported_at_its_step(case: Case) -> None:
    story = TraceBuilder()
    step = case.write(story)
    findings = story.check(close=case.close)
    groups = {(group.rule, group.cause) for group in findings.groups}
    assert groups == {(case.rule, case.cause), *case.also}, str(findings)
    first = findings.group(case.rule, case.cause).first
    assert (first.request_id, first.other_request_id) == (case.request, case.other)
    assert (first.page, first.slot, first.severity) == (case.page, case.slot, case.severity)
    if isinstance(step, Invocation):
        assert (first.invocation_id, first.seq, first.operation) == (
            step.invocation_id, step.seq, step.phase
        )  # fmt: skip
    else:
        assert (first.invocation_id, first.seq) == (None, step)
    (rule,) = [rule for rule in RULES if rule.name == case.rule]
    assert first.sentence == rule.sentence
    assert first.text.endswith(".")
    if case.page is not None and case.page < story.state.page_count:
        assert first.context.pages[0].page == case.page


NOT_CHECKED = (
    beams_that_share_a_requests_name,
    a_request_under_way_before_the_watching_began,
    a_choice_after_an_invocation_that_could_not_be_read,
)
"""Traces whose rows cannot be followed; the findings report it."""


@pytest.mark.parametrize("write", SILENT, ids=lambda write: write.__name__)
def test_a_near_miss_has_no_finding(write: Callable[[TraceBuilder], object]) -> None:
    story = TraceBuilder()
    write(story)
    findings = story.check()
    assert not findings, str(findings)
    assert not findings.notes
    assert bool(findings.unchecked) == (write in NOT_CHECKED)


def test_a_page_freed_and_rewritten_during_an_invocation_is_reported() -> None:
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    invocation = story.decode("a", finishes=False)
    story.drop("a", 1, 2)
    story.free("a", 1, 2)
    begin(story, "b", B, 1, 2)
    story.prefill("b")
    story.finish(invocation)
    story.token("a", 101)
    found = story.check().group("in-flight-conflict").first
    assert (found.cause, found.request_id, found.other_request_id) == ("rewritten", "a", "b")


def test_both_sides_of_a_conflict_have_their_stacks() -> None:
    story = TraceBuilder()
    story.submit("a", A)
    story.acquire("a", 1, 2, stack="a allocates")
    story.hold("a", 1, 2)
    story.prefill("a")
    story.token("a", 100)
    invocation = story.results_of(story.decode("a", finishes=False), 101)
    story.drop("a", 1, 2)
    story.free("a", 1, 2, stack="a frees")
    story.submit("b", B)
    story.acquire("b", 1, 2, stack="b allocates")
    story.hold("b", 1, 2)
    story.prefill("b")
    story.finish(invocation)
    story.chosen("a", 101)
    story.token("a", 101)
    findings = story.check()
    freed, rewritten = (
        findings.group("in-flight-conflict", cause).first for cause in ("freed", "rewritten")
    )
    assert (freed.stack, freed.other_stack) == ("a frees", "a allocates")
    assert (rewritten.stack, rewritten.other_stack) == ("b allocates", "a allocates")
    assert rewritten.text == (
        "prefill of b: rewrites slot 0 of page 1, which invocation 1 uses for a, before that has"
        " finished."
    )


def test_a_page_that_does_not_exist_is_wrong_data() -> None:
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    story.decode(Row("a", table=(99, 2)))
    assert story.check().first_wrong_data is not None


def test_a_page_in_use_before_the_recording_is_checked_when_it_is_reused() -> None:
    story = TraceBuilder(taken=[3])
    story.free(None, 3)
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    story.decode(Row("a", table=(3, 2)))
    assert story.check().group("wrong-kv-read") is not None


def test_one_row_is_not_two_writers() -> None:
    story = TraceBuilder()
    a_page_twice(story)
    assert story.check().group("write-write-conflict") is None


@pytest.mark.parametrize("kind", ["create", "match", "copy", "written_after_free"])
def test_a_page_that_does_not_exist_stops_no_check(kind: str) -> None:
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    pages = (2, 99) if kind == "copy" else (99,)
    story.event(kind, "a", pages, node=1, parent=0, tokens=(11, 12, 13, 14))
    story.close().check()


def test_a_negative_length_stops_no_check() -> None:
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    story.decode(Row("a", seq_len=-1))
    assert story.check().group("seq-len-mismatch") is not None


def test_every_rule_is_broken_here_and_has_a_sentence() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {case.rule for case in CASES} == set(names)
    for rule in RULES:
        assert rule.name.strip()
        assert rule.sentence.endswith(".")
        assert rule.sentence[0].isupper()


def test_preexisting_requests_with_pages_are_not_checked() -> None:
    story = TraceBuilder(holdings={"preexisting": [1, 2]})
    begin(story, "a", A, 3, 4)
    story.prefill("a")
    story.token("a", 100)
    story.decode("a", Row("preexisting", tokens=(3,), start=6, seq_len=7, table=(1, 2)))
    story.end("a")
    story.snapshot()  # the earlier request still has its pages: no finding
    story.drop("preexisting", 1, 2)
    story.free("preexisting", 1, 2)
    story.snapshot()
    findings = story.check()
    assert not findings, str(findings)


def test_pages_in_use_before_the_recording_are_accepted() -> None:
    node = Node(1, 0, 1, A[:4], 0, True)
    story = TraceBuilder(nodes=[node])
    story.submit("a", A)
    story.match("a", 1, node=1)
    story.reference(1, +1, "a")
    story.hold("a", 1)
    story.allocate("a", 2)
    story.prefill(Row("a", start=4))
    story.token("a", 100)
    story.decode("a")
    findings = story.check()
    assert not findings, str(findings)


def test_what_was_written_again_is_counted() -> None:
    story = TraceBuilder()
    the_same_prefix_is_written_again(story)
    assert story.check().rewritten == 4


def test_a_scene_has_the_page_before_and_after() -> None:
    story = TraceBuilder()
    another_prefix_written_to_a_cached_page(story)
    (first,) = story.check()
    page = first.context.pages[0]
    assert [slot.request_id for slot in page.before] == ["a"] * 4
    assert [slot.request_id for slot in page.after] == ["b"] * 4
    assert [slot.position for slot in page.after] == [0, 1, 2, 3]
