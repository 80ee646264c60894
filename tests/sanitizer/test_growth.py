"""What a sanitizer keeps of an engine that lives long: as much as is under way, not as was ever."""

from __future__ import annotations

import pytest
from growth import grown, kept
from trace_builder import TraceBuilder

from analysis.sanitizer import findings, state
from analysis.sanitizer.checker import Checker

_MANY = 200


@pytest.fixture(autouse=True)
def little_is_remembered(monkeypatch) -> None:
    monkeypatch.setattr(state, "_ENDED", 20)
    monkeypatch.setattr(findings, "_MEMBERS", 20)
    monkeypatch.setattr(findings, "_MOST_NAMED", 20)
    monkeypatch.setattr("analysis.sanitizer.rules.results._KEPT", 20)


def serve(story: TraceBuilder, number: int) -> None:
    """Have one request come and go, in one of several ways."""
    request, prompt = f"r{number}", [number, 1, 2, 3, 4]
    story.submit(request, prompt)
    story.allocate(request, 1, 2)
    story.results_of(story.prefill(request), 7)
    story.chosen(request, 7)
    story.token(request, 7)
    node = story.publish(request, prompt, [1])
    with story.within("acquire", request):
        story.reference(node, 1, request)
    if number % 5 == 0:  # more than it has at hand
        story.event("duplicate_page", request, [1])
        story.event("unprotected", request, [1], node=node)
    ending = number % 4
    if ending == 0:  # the engine is late, and before its client or after it
        story.done(request, "timeout")
        story.event("late", request, outcome="ok")
    elif ending == 1:
        story.event("late", request, outcome="ok")
        story.done(request, "timeout")
    elif ending == 2:
        story.answered(request, 7)
    with story.within("release", request):
        if ending != 3:  # else it is given back without a request id
            story.reference(node, -1, request)
        story.drop(request, 1, 2)
        story.free(request, 2)
    if ending > 1:
        story.done(request, "error" if ending == 3 else "ok")
    if ending == 3:
        story.reference(node, -1, None)
    story.evict(node)


def follow(checker: Checker, story: TraceBuilder, taken: int) -> int:
    for seq, item in story.items[taken:]:
        checker.put(seq, item)
    checker.go()
    return len(story.items)


def test_nothing_that_a_checker_keeps_grows_with_the_requests_that_were() -> None:
    story = TraceBuilder()
    story.submit("old", [9, 9, 9])
    story.allocate("old", 5)
    story.prefill("old")
    story.end("old")
    checker, taken, sizes = story.checker(), 0, []
    for number in range(3 * _MANY):
        serve(story, number)
        if number + 1 in (_MANY, 3 * _MANY):
            taken = follow(checker, story, taken)
            sizes.append(kept(checker))
    assert checker.findings.events == len([i for _, i in story.items if hasattr(i, "kind")])
    assert grown(*sizes) == {}
    # Who wrote a slot long ago is still known by name, and no more of it.
    state = checker.state
    assert state.name(int(state.shadow.writer[5 * state.stride])) == "old"
    assert "old" not in state.last_of
