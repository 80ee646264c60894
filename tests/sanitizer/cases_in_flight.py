"""Cases of what happens between the start of an invocation and its result."""

from __future__ import annotations

from rule_cases import A, B, begin, breaks, ready, silent

RULE = "in-flight-conflict"


def under_way(story, *, results: bool = True):
    """Have a decode of two requests begin, which ends later."""
    ready(story, "a", A, 1, 2)
    ready(story, "b", B, 3, 4)
    invocation = story.decode("a", "b", finishes=False)
    return story.results_of(invocation, 101, 101) if results else invocation


def ends(story, invocation, *tokens):
    story.finish(invocation)
    for request, token in zip(invocation.request_ids, tokens, strict=True):
        story.chosen(request, token)
        story.token(request, token)


@breaks(RULE, "freed", page=1)
def its_request_gives_its_pages_back_too_early(story):
    ready(story, "a", A, 1, 2)
    invocation = story.results_of(story.decode("a", finishes=False), 101)
    story.drop("a", 1, 2)
    seq = story.free("a", 1, 2)
    ends(story, invocation, 101)
    return seq


@breaks(RULE, "freed", page=3, request="b", other="a",
        also=(("free-while-referenced", "held"),))  # fmt: skip
def another_request_frees_its_page(story):
    invocation = under_way(story)
    seq = story.free("a", 3)
    ends(story, invocation, 101, 101)
    story.drop("b", 3)
    return seq


@breaks(RULE, "rewritten", page=1, slot=0, other="c")
def its_page_is_rewritten_for_another_request(story):
    invocation = under_way(story, results=False)
    story.drop("a", 1)
    story.free("a", 1)
    begin(story, "c", (31, 32, 33), 1)
    writer = story.prefill("c")
    story.finish(invocation)
    story.token("a", 101)
    story.token("b", 101)
    return writer


@breaks(RULE, "rewritten", page=3, request="b")
def a_page_is_copied_over_its_page(story):
    story.allocate("a", 5)
    invocation = under_way(story)
    with story.within("copy"):
        seq = story.copy(4, 3)
    ends(story, invocation, 101, 101)
    return seq


@silent
def pages_are_freed_when_it_has_ended(story):
    invocation = under_way(story)
    ends(story, invocation, 101, 101)
    story.drop("a", 1, 2)
    story.free("a", 1, 2)


@silent
def a_row_has_its_result_before_the_others(story):
    invocation = under_way(story)
    story.chosen("a", 101)
    story.token("a", 101)
    story.drop("a", 1, 2)
    story.free("a", 1, 2)
    story.done("a")
    begin(story, "c", (31, 32, 33), 1)
    story.prefill("c")
    story.finish(invocation)
    story.chosen("b", 101)
    story.token("b", 101)


@silent
def other_pages_are_freed_and_written_meanwhile(story):
    ready(story, "c", (31, 32, 33), 5)
    invocation = under_way(story)
    story.end("c")
    begin(story, "d", (41, 42, 43), 5)
    story.prefill("d", None)
    ends(story, invocation, 101, 101)


@silent
def padding_is_written_by_two_at_a_time(story):
    ready(story, "a", A, 1, 2)
    invocation = story.decode("a", None, None, finishes=False)
    begin(story, "b", B, 3, 4)
    story.prefill("b", None, None)
    story.finish(invocation)
    story.token("a", 101)
