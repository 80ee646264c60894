"""Cases of rules: block tables."""

from __future__ import annotations

from rule_cases import A, B, begin, breaks, ready, silent
from trace_builder import Row

from analysis.sanitizer.findings import WRONG_DATA


@breaks("block-table-mismatch", "freed-page", page=1)
def a_invocation_after_its_pages_were_freed(story):
    ready(story, "a", A, 1, 2)
    story.free("a", 1, 2)
    invocation = story.decode("a")
    story.drop("a", 1, 2)
    return invocation


@breaks(
    "block-table-mismatch",
    "too-short",
    severity=WRONG_DATA,
    also=(("position-mismatch", "no-page"),),
)
def a_block_table_that_is_too_short(story):
    ready(story, "a", A[:4], 1)
    return story.decode(Row("a", table=(1,)))


@breaks("block-table-mismatch", "foreign-page", other="b", page=3)
def a_page_of_another_request(story):
    begin(story, "b", B[:3], 3)
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", table=(1, 3)))


@breaks(
    "block-table-mismatch",
    "no-such-page",
    page=99,
    severity=WRONG_DATA,
    also=(("position-mismatch", "no-page"),),
)
def a_page_beyond_the_pool(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", table=(1, 99)))


@breaks("block-table-mismatch", "free-page", page=3)
def a_page_that_is_free(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", table=(1, 3)))


@breaks("block-table-mismatch", "padding-page", page=0)
def the_padding_page_within_the_length(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", table=(1, 0)))


@breaks("block-table-mismatch", "duplicate-page", page=1)
def a_page_twice(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", table=(1, 1)))


@breaks("block-table-padding", "foreign-page", other="b", page=3)
def anothers_page_past_the_own_length(story):
    ready(story, "b", B, 3, 4)
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", table=(1, 2, 3)), "b")


@breaks("block-table-padding", "free-page", page=3)
def a_freed_page_past_the_own_length(story):
    ready(story, "b", B, 3, 4)
    story.end("b")
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", table=(1, 2, 3)))


@breaks("block-table-padding", "cached-page", page=3)
def a_cached_page_past_the_own_length(story):
    ready(story, "b", (*B, 27, 28), 3, 4)
    story.publish("b", (*B, 27, 28), [3, 4])
    story.end("b")
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", table=(1, 2, 3)))


@breaks("block-table-padding", "no-such-page", page=99)
def a_page_beyond_the_pool_past_the_own_length(story):
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", table=(1, 2, 0, 99)))


@breaks("block-table-padding", "leaked-page", page=3)
def a_page_of_nobody_past_the_length_of_a_prompt(story):
    begin(story, "b", B, 3, 4)
    story.drop("b", 3)
    begin(story, "a", A, 1, 2)
    invocation = story.prefill(Row("a", table=(1, 2, 3)))
    story.free("b", 3)
    return invocation


@breaks("block-table-padding", "padding-row", request="a", page=2)
def a_requests_page_in_a_padding_row(story):
    ready(story, "a", A, 1, 2)
    return story.decode("a", Row(None, table=(0, 2)), blocks=2)


@silent
def own_pages_and_the_padding_page_past_the_own_length(story):
    ready(story, "a", A, 1, 2, 3)
    story.decode(Row("a", table=(1, 2, 3, 0, 0)), None)


@breaks("shared-page-write", "request-row", request="b", page=1, slot=0)
def another_prefix_written_to_a_cached_page(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.end("a")
    begin(story, "b", B[:4])
    story.hold("b", 1)
    story.reference(1, +1, "b")
    return story.prefill("b")


@breaks("shared-page-write", "request-row", request="b", other="a", page=2, slot=1)
def another_token_written_where_a_sharer_wrote(story):
    ready(story, "a", A, 1, 2)
    story.submit("b", (*A[:5], 99))
    story.hold("b", 1, 2)
    return story.prefill("b")


@breaks("shared-page-write", "request-row", request="b", other="a", page=1, slot=2)
def padding_behind_a_chunk_that_ends_in_a_shared_page(story):
    ready(story, "a", A, 1, 2)
    story.submit("b", A)
    story.hold("b", 1)
    story.allocate("b", 3)
    chunk = story.prefill(Row("b", start=0, seq_len=2))
    story.prefill(Row("b", start=2))  # before anybody has read the padding
    return chunk


@breaks(
    "shared-page-write",
    "padding-row",
    request="a",
    page=1,
    slot=0,
    also=(("block-table-padding", "padding-row"),),
)
def padding_written_to_a_requests_page(story):
    ready(story, "a", A, 1, 2)
    begin(story, "b", B, 3, 4)
    return story.prefill("b", Row(None, table=(1,)))


@silent
def new_slots_of_a_shared_page(story):
    ready(story, "a", A[:2], 1)
    story.submit("b", A[:2])
    story.hold("b", 1)
    story.prefill("b")
