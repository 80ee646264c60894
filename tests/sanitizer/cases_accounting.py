"""Cases of rules: the state of pages."""

from __future__ import annotations

import functools

from rule_cases import CASES, A, B, Case, begin, breaks, ready, silent


@breaks("double-allocation", "page-in-use", request="b", other="a", page=2)
def a_held_page_handed_out(story):
    begin(story, "a", A, 1, 2)
    story.submit("b", B[:4])
    place = story.acquire("b", 2)
    story.hold("b", 2)
    story.drop("b", 2)
    return place


@breaks("double-allocation", "page-in-use", page=3)
def a_page_handed_out_twice_at_once(story):
    story.submit("a", A)
    place = story.acquire("a", 3, 3)
    story.hold("a", 3)
    return place


def of_one_request(story, **changes) -> int:
    begin(story, "a", A, 1, 2)
    return story.snapshot(**{"allocated": [1, 2], **changes})


@breaks("allocation-list-mismatch", "held-page-missing", page=2)
def a_page_asked_of_the_list_that_lacks_it(story):
    begin(story, "a", A, 1, 2)
    return story.event("unlisted", "a", (2,))


@breaks("free-while-referenced", "held-after-free", page=3)
def a_free_page_on_a_requests_list(story):
    begin(story, "a", A, 1, 2)
    place = story.hold("a", 3)
    story.drop("a", 3)
    return place


@silent
def lists_that_are_right(story):
    of_one_request(story, duplicates=[3], free=[0, 4, 5, 6, 7])


def lists(cause: str, write, request: str | None, page: int, **changes) -> None:
    case = functools.partial(write, **changes)
    case.__name__ = f"a_list_in_which_is_{cause.replace(' ', '_')}"
    CASES.append(Case(case, "allocation-list-mismatch", cause, request=request, page=page))


lists("held-page-missing", of_one_request, "a", 2, allocated=[1])
lists("held-and-free", of_one_request, "a", 1, allocated=None, free=[0, 1, 3, 4, 5, 6, 7])
lists("listed-twice", of_one_request, "a", 2, allocated=[2, 1, 2])
lists("listed-and-free", of_one_request, None, 5, allocated=[1, 2, 5])
lists("pending-free-twice", of_one_request, None, 3, duplicates=[3, 3], free=[0, 4, 5, 6, 7])
lists("pending-free-and-free", of_one_request, None, 3, duplicates=[3])


def of_a_cached_page(story, **changes) -> int:
    ready(story, "a", A, 1, 2)
    story.reference(story.publish("a", A, [1]), +1, "a")
    return story.snapshot(**{"allocated": [2], **changes})


lists("listed-and-cached", of_a_cached_page, "a", 1, allocated=[1, 2])
lists("pending-free-and-cached", of_a_cached_page, "a", 1, duplicates=[1])


@breaks("double-free", "already-free", page=2)
def a_page_freed_twice(story):
    begin(story, "a", A, 1, 2)
    story.drop("a", 2)
    story.free("a", 2)
    return story.free("a", 2)


@breaks("free-while-referenced", "held", request="b", other="a", page=2)
def a_page_freed_while_another_holds_it(story):
    begin(story, "a", A, 1, 2)
    story.submit("b", A)
    story.hold("b", 2)
    story.drop("a", 2)
    place = story.free("a", 2)
    story.drop("b", 2)
    return place


@breaks("free-while-referenced", "cached", page=1)
def a_page_freed_while_cached(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.drop("a", 1)
    return story.free("a", 1)


@breaks("free-count-mismatch", "too-few", page=2)
def a_page_that_did_not_reach_the_free_list(story):
    begin(story, "a", A, 1, 2)
    story.drop("a", 2)
    place = story.free("a", 2, free_pages=6)
    story.event("free", "a", (), free_pages=6)  # reported once
    story.drop("a", 1)
    story.free("a", 1, free_pages=7)
    return place


@breaks("free-count-mismatch", "too-many", page=1)
def a_page_that_was_not_taken_from_the_free_list(story):
    story.submit("a", A)
    place = story.acquire("a", 1, free_pages=8)
    story.hold("a", 1)
    story.drop("a", 1)
    story.free("a", 1, free_pages=9)
    return place


@breaks("double-allocation", "same-request", page=1)
def a_page_twice_in_an_allocation(story):
    begin(story, "a", A, 1, 2)
    return story.event("duplicate_page", "a", (1,))


@silent
def a_page_that_is_anothers_before_it_is_off_the_old_list(story):
    ready(story, "a", A, 1, 2)
    story.submit("b", B)
    story.free("a", 1, 2)
    story.acquire("b", 1)
    story.drop("a", 1, 2)
    story.done("a")
    story.hold("b", 1)
    story.end("b")


@silent
def counts_that_two_threads_tell_in_another_order(story):
    begin(story, "a", A, 1, 2)
    with story.within(thread="w1"):
        story.submit("b", B)
        story.acquire("b", 3, free_pages=4)
        story.hold("b", 3)
    story.acquire("a", 4, free_pages=5)
    story.hold("a", 4)


@breaks("page-leak", "dropped", page=2)
def a_page_dropped_and_not_freed(story):
    begin(story, "a", A, 1, 2)
    story.drop("a", 1, 2)
    story.free("a", 1)
    return story.done("a")


@breaks("page-leak", "acquired", page=2)
def a_page_acquired_and_never_held(story):
    story.submit("a", A)
    story.acquire("a", 1, 2)
    story.hold("a", 1)
    story.drop("a", 1)
    story.free("a", 1)
    return story.done("a")


@breaks("page-leak", "unlinked", page=1)
def an_evicted_page_not_freed(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.release("a")
    with story.within("evict", "a"):
        story.unlink(1, "a")
        story.no_leaf(1, "a")
    return story.done("a")


@breaks("page-leak", "still-held", page=1)
def pages_held_at_the_end(story):
    begin(story, "a", A, 1, 2)
    return story.done("a")


@silent
def pages_that_stay_cached_or_set_aside(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.event("duplicate", "a", (2,))
    story.drop("a", 1, 2)
    story.done("a")
    story.free(None, 2)
    story.snapshot()


@breaks("padding-page-allocated", "allocated", page=0)
def the_padding_page_given_out(story):
    story.submit("a", A)
    place = story.acquire("a", 0)
    story.hold("a", 0)
    return place
