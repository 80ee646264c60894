"""The search on made-up engines, whose failures are known: what is left fails, and is smallest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.reproduction.candidate import Candidate
from analysis.reproduction.engines import Attempt, OutOfTimeError
from analysis.reproduction.search import PARTS, Search
from analysis.reproduction.symptom import Symptom
from analysis.workloads.workload import Request

Fails = Callable[[Candidate], str | None]
"""The failed request of a candidate; None if it does not fail."""


class References:
    """A model that continues every prompt in the same way."""

    def of(self, requests: Any) -> dict[tuple[str, int], tuple[int, ...]]:
        return {(r.prompt, r.max_new_tokens): (7,) * r.max_new_tokens for r in requests}


class Rule:
    """Stands for fresh engines that fail by a rule, instead of `Engines`."""

    def __init__(self, fails: Fails, end_after: int | None = None) -> None:
        self.fails, self.left = fails, end_after
        self.references = References()

    def attempts(self, candidate: Candidate, *_: Any) -> Iterator[Attempt]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise OutOfTimeError
        failed = self.fails(candidate)
        outcome = "wrong" if failed else "ok"
        yield Attempt([{"outcome": outcome}], [], failed)


def search(start: Candidate, fails: Fails, **options: Any) -> Search:
    failed = fails(start)
    assert failed is not None
    return Search(
        Rule(fails, options.pop("end_after", None)), Symptom("wrong"), start, failed,  # type: ignore[arg-type]
        encode=lambda text: [ord(c) for c in text],
        decode=lambda ids: "".join(map(chr, ids)),
        budget_s=options.pop("budget_s", 3600.0), tries=1,
    )  # fmt: skip


def candidates() -> st.SearchStrategy[Candidate]:
    one = st.tuples(st.text("abc ", min_size=1, max_size=12), st.integers(1, 9), st.floats(0, 2))
    requests = st.lists(one, min_size=1, max_size=7).map(
        lambda rows: tuple(Request(f"r{n}", *row[:2], arrival_s=row[2])
                           for n, row in enumerate(rows))
    )  # fmt: skip
    return st.builds(Candidate, requests, st.integers(1, 7), st.integers(1, 300)).map(
        lambda one: one.of(one.requests)
    )


@settings(max_examples=60)
@given(candidates(), st.data())
def test_of_a_monotone_failure_every_part_becomes_as_small_as_it_can(start, data):
    needed = data.draw(st.sets(st.sampled_from([r.id for r in start.requests]), min_size=1))
    own = [r for r in start.requests if r.id in needed]
    tokens = data.draw(st.integers(1, min(r.max_new_tokens for r in own)))
    letters = data.draw(st.integers(1, min(len(r.prompt) for r in own)))
    pages = data.draw(st.integers(1, start.page_count))
    clients = data.draw(st.integers(1, min(start.concurrency, len(needed))))
    first = min(needed)

    def fails(one: Candidate) -> str | None:
        there = [r for r in one.requests if r.id in needed]
        # Any request of it fails alone, too, unless it needs the others.
        whole = (
            len(there) == len(needed)
            and all(r.max_new_tokens >= tokens and len(r.prompt) >= letters for r in there)
            and one.page_count >= pages
            and one.concurrency >= clients
        )
        return first if whole else None

    found = search(start, fails)
    best = found.run({r.id for r in start.requests})
    assert {r.id for r in best.requests} == needed
    assert {r.max_new_tokens for r in best.requests} == {tokens}
    assert {len(r.prompt) for r in best.requests} == {letters}
    assert (best.page_count, best.concurrency) == (pages, clients)
    assert not any(r.arrival_s for r in best.requests)
    assert fails(best) == found.failed == first
    assert found.not_tried == []
    for step in found.steps:
        assert fails(step.before)
        assert fails(step.after)


@settings(max_examples=60)
@given(candidates(), st.integers(2, 5), st.data())
def test_of_any_failure_the_result_fails_and_no_request_can_be_removed(start, divisor, data):
    peers = data.draw(st.sets(st.sampled_from([r.id for r in start.requests])))
    left_over = len(start.requests) % divisor

    def fails(one: Candidate) -> str | None:
        return one.requests[0].id if len(one.requests) % divisor == left_over else None

    best = search(start, fails).run(peers)
    assert fails(best)
    for request in best.requests:
        fewer = best.among({r.id for r in best.requests} - {request.id})
        assert not fewer.requests or not fails(fewer)


@settings(max_examples=60)
@given(candidates(), st.integers(0, 40))
def test_out_of_time_the_best_so_far_fails_and_the_rest_is_named(start, engines):
    def fails(one: Candidate) -> str | None:
        return "r0" if one.requests[0].id == "r0" else None

    found = search(start, fails, end_after=engines)
    best = found.run(set())
    assert fails(best)
    assert set(found.not_tried) <= {*PARTS, "another round of all parts"}
    whole = search(start, fails)
    if best != whole.run(set()):
        assert found.not_tried


def test_ctrl_c_keeps_the_best_so_far():
    start = Candidate(tuple(Request(f"r{n}", "abc", 3) for n in range(4)), 4, 8)
    asked: list[Candidate] = []

    def fails(one: Candidate) -> str | None:
        asked.append(one)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return "r0"

    found = search(start, fails)
    with pytest.raises(KeyboardInterrupt):
        found.run(set())
    assert found.best in asked[:3]
    assert found.best != start
    assert found.not_tried


def test_fewer_pages_are_no_reproduction_if_the_request_does_not_fit_into_them():
    """Together the requests exhaust 8 pages; a pool of less than 3 is too small for any of them."""
    start = Candidate(tuple(Request(f"r{n}", "abc", 1) for n in range(4)), 4, 8)

    def fails(one: Candidate) -> str | None:
        return one.requests[-1].id if one.page_count < 3 * len(one.requests) else None

    best = search(start, fails).run(set())
    assert (len(best.requests), best.page_count) == (2, 3)
    alone = replace(best, requests=best.requests[-1:], concurrency=1)
    assert fails(alone) is None


def test_a_prompt_that_the_model_answers_differently_is_no_reproduction():
    start = Candidate((Request("r0", "abcdef", 2),), 1, 1)
    found = search(start, lambda one: "r0")
    found._engines.references.of = lambda requests: {  # type: ignore[method-assign]
        (r.prompt, r.max_new_tokens): (len(r.prompt) >= 4,) * r.max_new_tokens for r in requests
    }
    assert [r.prompt for r in found.run(set()).requests] == ["cdef"]
