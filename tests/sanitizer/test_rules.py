"""Each rule: a story that breaks it and is told so, to the step, and near misses that are not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from trace_builder import ROOT, Row, TraceBuilder

from analysis.sanitizer.findings import AT_RISK, WRONG_DATA
from analysis.sanitizer.meanings import meaning_of
from analysis.sanitizer.rules import RULES
from analysis.sanitizer.world import Invocation, Unread
from analysis.snapshots.snapshot import Node

Step = Invocation | int | None
A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26)


@dataclass(frozen=True)
class Case:
    """A story that breaks a rule at the step that it returns, and what is to be said of it."""

    tell: Callable[[TraceBuilder], Step]
    rule: str
    cause: str
    request: str | None = "a"
    other: str | None = None
    page: int | None = None
    slot: int | None = None
    severity: str = AT_RISK
    also: tuple[tuple[str, str], ...] = ()
    """What else is broken by it; nothing further may be."""
    close: bool = True


CASES: list[Case] = []
SILENT: list[Callable[[TraceBuilder], object]] = []


def breaks(rule: str, cause: str, **due):
    def add(tell):
        CASES.append(Case(tell, rule, cause, **due))
        return tell

    return add


def silent(tell):
    SILENT.append(tell)
    return tell


def begin(story: TraceBuilder, request: str, prompt: tuple[int, ...], *pages: int) -> None:
    story.submit(request, prompt)
    story.allocate(request, *pages)


def ready(story: TraceBuilder, request: str, prompt: tuple[int, ...], *pages: int) -> Invocation:
    """Have a request prefilled, with its first token."""
    begin(story, request, prompt, *pages)
    invocation = story.prefill(request)
    story.token(request, 100)
    return invocation


# -- provenance --------------------------------------------------------------------------------


@breaks(
    "token-mismatch",
    "wrong-token",
    severity=WRONG_DATA,
    also=(("wrong-kv-read", "wrong-position"),),
)
def another_token_in_a_decode(story):
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", tokens=(101,)))


@breaks("token-mismatch", "wrong-token", severity=WRONG_DATA)
def anothers_prompt_in_a_prefill(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", tokens=B))


@breaks("token-mismatch", "missing-token", severity=WRONG_DATA)
def a_prefill_that_leaves_its_last_tokens_out(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", tokens=A[:4], table=(1, 2)))


@silent
def tokens_that_the_engine_did_not_show(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    story.event("token", "a", value=None)
    story.decode(Row("a", tokens=(77,)))


@breaks(
    "position-mismatch", "ahead", page=2, severity=WRONG_DATA, also=(("wrong-kv-read", "padding"),)
)
def a_start_too_late(story):
    ready(story, "a", A[:5], 1, 2)
    return story.decode(Row("a", start=6))


@breaks("context-overflow", "past-context")
def a_decode_past_the_models_context(story):
    story.context = 7
    ready(story, "a", A, 1, 2)
    story.decode("a")
    story.token("a", 101)
    invocation = story.decode("a")
    story.token("a", 102)
    return invocation


@breaks("context-overflow", "past-context")
def a_prompt_longer_than_the_models_context(story):
    story.context = 5
    begin(story, "a", A, 1, 2)
    return story.prefill("a")


@silent
def the_models_context_filled_to_the_last_position(story):
    story.context = 7
    ready(story, "a", A, 1, 2)
    story.decode("a", None)


@breaks(
    "position-mismatch",
    "behind",
    page=2,
    severity=WRONG_DATA,
    also=(("wrong-kv-read", "wrong-position"),),
)
def a_start_too_early(story):
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", start=5))


@breaks(
    "position-mismatch",
    "no-page",
    severity=WRONG_DATA,
    also=(("block-table-mismatch", "too-short"),),
)
def a_position_past_the_block_table(story):
    ready(story, "a", A[:4], 1)
    return story.decode(Row("a", table=(1,)))


@breaks("seq-len-mismatch", "underread", severity=WRONG_DATA)
def a_length_short_by_one(story):
    ready(story, "a", A, 1, 2)
    return story.decode(Row("a", seq_len=6))


@breaks("seq-len-mismatch", "overread", other="b", page=3, slot=1, severity=WRONG_DATA)
def a_length_with_anothers_slots_beyond(story):
    ready(story, "b", B[:2], 3)
    story.end("b")
    ready(story, "a", A[:4], 1)
    story.allocate("a", 3)
    return story.decode(Row("a", seq_len=6))


@breaks("seq-len-mismatch", "overread", severity=AT_RISK)
def a_length_beyond_the_block_table(story):
    ready(story, "a", A[:3], 1)
    return story.decode(Row("a", seq_len=5))


@breaks("seq-len-mismatch", "underread", severity=WRONG_DATA)
def a_prefill_short_of_its_prompt(story):
    begin(story, "a", A, 1, 2)
    return story.prefill(Row("a", seq_len=5))


@breaks("write-write-conflict", "two-rows", other="b", page=2, slot=0)
def two_rows_write_one_slot(story):
    begin(story, "a", A, 1, 2)
    begin(story, "b", B[:4])
    story.hold("b", 2)
    return story.prefill("a", "b")


@breaks(
    "write-write-conflict",
    "padding-row",
    page=2,
    slot=0,
    also=(("block-table-padding", "padding-row"),),
)
def a_padding_row_writes_a_requests_slot(story):
    begin(story, "a", A, 1, 2)
    return story.prefill("a", Row(None, table=(2,)))


@silent
def two_rows_write_the_same_prefix_in_one_invocation(story):
    begin(story, "a", A, 1, 2)
    begin(story, "b", A[:5], 3)
    story.hold("b", 1)
    story.pages["b"] = [1, 3]
    story.prefill("a", "b", None, None)
    story.token("a", 100)
    story.token("b", 101)
    story.decode("a", "b", None, blocks=3)


@breaks("wrong-kv-read", "uninitialized", page=3, slot=0, severity=WRONG_DATA)
def a_page_that_was_never_written(story):
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    return story.decode(Row("a", table=(3, 2)))


@breaks(
    "wrong-kv-read",
    "padding",
    page=3,
    slot=0,
    severity=WRONG_DATA,
    also=(("block-table-padding", "padding-row"),),
)
def a_page_that_padding_was_written_to(story):
    ready(story, "a", A, 1, 2)
    begin(story, "b", B, 4, 5)
    story.prefill("b", Row(None, table=(3,)))
    story.allocate("a", 3)
    return story.decode(Row("a", table=(3, 2)))


@breaks("wrong-kv-read", "wrong-position", page=2, slot=0, severity=WRONG_DATA)
def two_pages_in_the_wrong_order(story):
    ready(story, "a", (*A, 17, 18), 1, 2, 3)
    return story.decode(Row("a", table=(2, 1, 3)))


@breaks("wrong-kv-read", "stale-after-free", other="b", page=3, slot=0, severity=WRONG_DATA)
def a_reused_page_that_was_not_overwritten(story):
    ready(story, "b", B[:4], 3)
    story.end("b")
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    return story.decode(Row("a", table=(3, 2)))


@breaks("wrong-kv-read", "cross-request", other="b", page=3, slot=0, severity=WRONG_DATA)
def a_page_that_another_request_wrote(story):
    ready(story, "b", B[:4], 3)
    ready(story, "a", A, 1, 2)
    story.hold("a", 3)
    return story.decode(Row("a", table=(3, 2)))


@breaks("wrong-kv-read", "cross-request", other="b", page=3, slot=0, severity=WRONG_DATA)
def the_same_tokens_after_another_beginning(story):
    ready(story, "b", (1, 2, 3, 4, 5, 6, 7, 8), 4, 3)
    begin(story, "a", (9, 2, 3, 4, 5, 6, 7, 8, 9), 1, 2, 5)
    story.prefill("a")
    story.token("a", 100)
    story.hold("a", 3)
    return story.decode(Row("a", table=(1, 3, 5)))


@silent
def a_reused_page_that_was_overwritten(story):
    ready(story, "b", (*B, 27, 28), 3, 4)
    story.end("b")
    ready(story, "a", A, 4, 3)
    story.decode("a", None)
    story.token("a", 101)
    story.decode("a")


@silent
def a_prefill_in_chunks(story):
    prompt = tuple(range(1, 12))
    begin(story, "a", prompt, 1, 2, 3)
    begin(story, "b", B, 4, 5)
    story.prefill(Row("a", start=0, seq_len=4), None)
    story.prefill(Row("a", start=4, seq_len=6), Row("b", start=0))
    story.prefill(Row("a", start=6))
    story.token("a", 100)
    story.decode("a")


@silent
def a_prefill_that_goes_on_behind_a_cached_prefix(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.submit("b", (*A[:4], *B))
    story.match("b", 1, node=1)
    story.reference(1, +1, "b")
    story.hold("b", 1)
    story.allocate("b", 3, 4)
    story.prefill(Row("b", start=4))
    story.token("b", 100)
    story.decode("b", "a")


@silent
def the_same_prefix_is_written_again(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.submit("b", (*A[:4], 99))
    story.match("b", 1, node=1)
    story.hold("b", 1)
    story.allocate("b", 3)
    story.prefill("b")
    story.token("b", 100)
    story.decode("a", "b")


@silent
def a_copied_page(story):
    ready(story, "a", A, 1, 2)
    story.submit("b", A)
    story.hold("b", 1)
    story.allocate("b", 3)
    story.copy(2, 3, "b")
    story.lengths["b"] = 5
    story.prefill(Row("b", start=5))
    story.token("b", 101)
    story.decode("a", "b")


@silent
def a_request_whose_name_was_used_before(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    story.pages["a"] = []
    ready(story, "a", B, 1, 2)
    story.decode("a")


@breaks(
    "tainted-kv-read",
    "own-steps",
    page=3,
    slot=0,
    severity=WRONG_DATA,
    also=(("wrong-kv-read", "wrong-position"),),
)
def a_step_after_a_wrong_one(story):
    ready(story, "a", (*A, 17, 18), 1, 2, 3)
    story.decode(Row("a", table=(2, 1, 3)))
    story.token("a", 101)
    return story.decode("a")


@breaks(
    "tainted-kv-read",
    "other-request",
    request="b",
    other="a",
    page=2,
    slot=3,
    severity=WRONG_DATA,
    also=(("wrong-kv-read", "wrong-position"), ("tainted-kv-read", "own-steps")),
)
def a_cached_step_after_a_wrong_one(story):
    ready(story, "a", (*A, 17), 1, 2)
    story.allocate("a", 3)
    # It reads its first page from elsewhere while it computes what it publishes afterwards.
    story.copy(2, 3)
    story.decode(Row("a", table=(3, 2)))
    story.token("a", 101)
    story.allocate("a", 4)
    story.pages["a"] = [1, 2, 4]
    story.decode("a")
    tokens = (*A, 17, 100)
    node = story.publish("a", tokens, [1, 2])
    story.reference(node, +1, "b")
    story.submit("b", (*tokens, 9))
    story.match("b", 1, 2, node=node)
    story.hold("b", 1, 2)
    story.allocate("b", 5)
    return story.prefill(Row("b", start=8))


@silent
def beams_that_share_a_requests_name(story):
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    story.decode(Row("a", table=(1, 2)), Row("a", table=(1, 3), start=3, seq_len=9, tokens=(9,)))


@silent
def a_request_under_way_before_the_watching_began(story):
    ready(story, "a", A, 1, 2)
    strange = Row("stranger", tokens=(3,), start=17, seq_len=30, table=(7, 5))
    story.decode("a", strange)
    story.token("a", 101)
    story.decode("a")
    story.event("done", "stranger", outcome="ok")


# -- tables ------------------------------------------------------------------------------------


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


# -- the trie ----------------------------------------------------------------------------------


@breaks("cached-prefix-mismatch", "uninitialized", page=1, slot=0)
def a_page_published_before_it_was_written(story):
    begin(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return place_of(story, "create")


@breaks("cached-prefix-mismatch", "padding", page=2, slot=2)
def a_partial_page_published_as_a_whole(story):
    begin(story, "a", A, 1, 2)
    story.prefill("a")
    story.publish("a", (*A, 17, 18), [1, 2])
    return place_of(story, "create")


@breaks("cached-prefix-mismatch", "other-prefix", other="b", page=3, slot=0)
def anothers_page_published(story):
    ready(story, "b", B, 3, 4)
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [3])
    return place_of(story, "create")


@breaks("cached-prefix-mismatch", "other-prefix", request="b", other="a", page=2, slot=0)
def a_page_served_for_another_prefix(story):
    ready(story, "a", (*A, 17, 18), 1, 2)
    node = story.publish("a", (*A, 17, 18), [1, 2])
    story.submit("b", (*A[:4], *B))
    return story.match("b", 1, 2, node=node)


@silent
def a_partial_page_published_for_what_it_holds(story):
    begin(story, "a", A, 1, 2)
    story.prefill("a")
    story.token("a", 100)
    story.publish("a", A, [1, 2])
    story.reference(2, +1, "a")
    story.decode("a")  # goes on in the slots that nobody was promised
    story.submit("b", A[:4])
    story.match("b", 1, node=1)


@silent
def a_publication_finds_what_it_has_flown(story):
    ready(story, "a", (*A, 7), 1, 2)
    story.decode("a")
    with story.within("publish", "a"):
        story.match("a", 1, 2)
    story.match("nobody", 7)


@breaks("cached-prefix-mismatch", "other-prefix", other="b", page=3, slot=0)
def a_publication_finds_another_prefix(story):
    ready(story, "a", (*A, 7), 1, 2)
    ready(story, "b", B, 3, 4)
    story.decode("a")
    with story.within("publish", "a"):
        return story.match("a", 3, 2)


@breaks("orphaned-node", "overwritten", request="b", other="a", page=1)
def a_node_replaced_by_another(story):
    ready(story, "a", A, 1, 2)
    ready(story, "b", A, 3, 4)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    with story.within("publish", "b"):
        place = story.replace(1, "b")
        story.no_leaf(1, "b")
        story.create("b", 3, A[:4])
        story.leaf(2, "b")
    return place


@silent
def unreferenced_nodes_evicted_from_the_leaves_up(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    node = story.publish("a", tokens, [1, 2])
    story.reference(node, +1, "a")
    story.end("a")
    story.evict(node)
    story.evict(1)
    story.snapshot()


@breaks("leaf-set-mismatch", "unlinked-node")
def an_evicted_node_among_the_leaves(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    with story.within("evict", "a"):
        story.unlink(1, "a")
    return place_of(story, "operation")


@breaks("leaf-set-mismatch", "inner-node", page=1)
def a_node_with_children_among_the_leaves(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens[:4], [1])
    with story.within("publish", "a"):
        story.create("a", 2, tokens[4:], 1)
        story.leaf(2, "a")
    return place_of(story, "operation")


@breaks("leaf-set-mismatch", "missing-leaf", request=None, page=1)
def a_childless_node_not_among_the_leaves(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    story.end("a")
    with story.within("evict"):
        story.unlink(2)
        story.no_leaf(2)
        story.free(None, 2)
    return place_of(story, "operation")


@silent
def leaves_that_are_put_right_within_the_operation(story):
    ready(story, "a", A, 1, 2)
    with story.within("publish", "a"):
        story.create("a", 1, A[:4])
        with story.within("release", "b", thread="w1"):
            pass  # another thread's operation says nothing about this one's nodes
        story.leaf(1, "a")


@breaks("ref-count-mismatch", "negative", page=1, also=(("ref-count-mismatch", "over-released"),))
def a_reference_below_nothing(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return story.reference(1, -1, "a")


@breaks("ref-count-mismatch", "no-owner", request=None, page=1)
def a_reference_for_nobody(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return story.reference(1, +1, None)


@breaks(
    "ref-count-mismatch",
    "over-released",
    request="a",
    other="b",
    page=1,
    also=(("ref-count-mismatch", "negative"),),
)
def anothers_reference_given_back(story):
    ready(story, "a", A, 1, 2)
    begin(story, "b", B, 3, 4)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    return story.reference(1, -1, "b")


@breaks("ref-count-mismatch", "not-released", page=1)
def a_reference_kept(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.drop("a", 1, 2)
    story.free("a", 2)
    return story.done("a")


@silent
def references_moved_to_a_deeper_node(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    story.reference(1, +1, "a")
    story.reference(2, +1, "a")
    story.reference(1, -1, "a")


@silent
def a_request_that_was_given_up_keeps_what_it_has_for_now(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.done("a", "error")
    story.release("a")


@silent
def a_reference_taken_before_the_watching(story):
    # Its request was under way already, so it was never seen to be sent in, nor to take it.
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.event("reference", "early", node=1, ref_before=2, ref_count=1)


@breaks("evicted-while-referenced", "referenced-node", other="b", page=1)
def a_referenced_node_evicted(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    with story.within("evict", "b"):
        place = story.unlink(1, "b")
        story.no_leaf(1, "b")
    return place


@breaks("unprotected-page", "no-reference", page=1)
def a_decode_on_a_page_that_nobody_refers_to(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return story.decode("a")


@breaks(
    "unprotected-page",
    "no-reference",
    request="a",
    page=1,
    also=(("ref-count-mismatch", "no-owner"),),
)
def a_reference_that_is_taken_from_a_request_under_way(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.decode("a")
    story.token("a", 101)
    story.reference(1, -1, None)
    invocation = story.decode("a")
    story.reference(1, +1, None)
    return invocation


@silent
def a_page_that_is_referred_to_below(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    node = story.publish("a", tokens, [1, 2])
    story.reference(node, +1, "a")
    story.submit("b", (*A[:4], 99))
    story.hold("b", 1)
    story.allocate("b", 3)
    story.prefill("b")  # evicting the first page takes out the second before
    story.snapshot()


@breaks("unprotected-page", "no-reference", page=1)
def a_count_of_the_engines_own_that_is_too_low(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    root, node = story.world.snapshot().nodes
    return story.snapshot(nodes=(root, replace(node, ref_count=0)))


@breaks("unprotected-page", "no-reference", page=1)
def a_request_that_goes_on_from_a_node_without_references(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    return story.event("unprotected", "a", (1,), node=1)


@breaks("parent-mismatch", "wrong-parent", page=2)
def a_node_that_points_to_no_parent(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.reference(story.publish("a", tokens, [1, 2]), +1, "a")
    return story.snapshot(misplaced=[(2, -1, 1)])


@breaks("parent-mismatch", "wrong-parent", page=2)
def a_lookup_that_passes_a_node_with_another_parent(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    return story.event("detached", "a", (2,), node=2, parent=0)


@breaks("parent-mismatch", "wrong-child", page=2)
def a_node_filed_under_another(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    return story.event("detached", "a", (2,), node=2, parent=1)


# -- accounting --------------------------------------------------------------------------------


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


def lists(cause: str, tell, request: str | None, page: int, **changes) -> None:
    case = functools.partial(tell, **changes)
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
    story.event("free", "a", (), free_pages=6)  # said once
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


# -- liveness ----------------------------------------------------------------------------------


@breaks("stuck-request", "worker-died")
def a_worker_that_died(story):
    begin(story, "a", A, 1, 2)
    place = story.event("worker_died", "a", message="it raised IndexError.")
    story.end("a", "error")
    return place


def given_up(story, state, phase=None):
    ready(story, "a", A, 1, 2)
    if state is not None:
        threads = [{"thread": "MainThread 1", "frames": ["wait"]}]
        stall = {"state": state, "phase": phase, "invocations": [], "threads": threads}
        story.event("stall", "a", stall=stall)
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


def later(story, seconds):
    """Have something that concerns no request happen so long after the beginning."""
    story.event("memory", value=1, t_s=seconds)


@breaks("stuck-request", "batcher-stalled")
def a_request_never_boarded(story):
    return given_up(story, "pending", "decode")


@breaks("stuck-request", "batcher-stalled")
def a_request_that_waits_for_its_group(story):
    return given_up(story, "reserved")


@breaks("stuck-request", "invocation-pending")
def a_invocation_that_never_lands(story):
    ready(story, "a", A, 1, 2)
    story.event("invocation_unfinished", value=1, phase="decode", request_ids=["a"])
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


@breaks("stuck-request", "lost-wakeup")
def a_request_that_nobody_wakes(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


@breaks("stuck-request", "batcher-stalled")
def a_request_of_which_nothing_is_known_but_that_no_invocation_began(story):
    return given_up(story, "executing", "decode")


def locked(story, *locks):
    """Give a request up while threads had these locks for so many seconds."""
    kept = [{"lock": name, "thread": f"{name}'s", "seconds": seconds} for name, seconds in locks]
    ready(story, "a", A, 1, 2)
    story.event("stall", "a", stall={"state": "pending", "phase": "decode", "locks": kept})
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


@breaks("stuck-request", "lock-held")
def a_lock_that_is_not_released(story):
    return locked(story, ("pool", 1.7))


@breaks("stuck-request", "batcher-stalled")
def a_lock_held_no_longer_than_on_a_busy_machine(story):
    return locked(story, ("pool", 0.6))


def test_the_oldest_lock_is_named():
    story = TraceBuilder()
    locked(story, ("ref-count-mismatch", 1.6), ("pool", 3.0), ("cache", 2.0))
    text = story.check(close=False).group("stuck-request", "lock-held").first.text
    assert "thread pool's held the lock of the pool and had not released it after 3 s" in text


@breaks("stuck-request", "worker-died")
def a_lock_of_a_worker_that_died(story):
    begin(story, "b", B, 3, 4)
    place = story.event("worker_died", "a", message="it raised IndexError.")
    story.end("b", "error")
    locked(story, ("pool", 3.0))
    return place


@breaks("stuck-request", "batcher-stalled")
def a_request_that_starves_while_others_are_served(story):
    ready(story, "a", A, 1, 2)
    begin(story, "b", B, 3, 4)
    place = story.end("a", "timeout")
    invocation = story.prefill("b")
    invocation.t_s = 10.5
    later(story, 10.6)
    return place


@silent
def a_request_that_its_client_gave_up_and_the_engine_ended(story):
    ready(story, "a", A, 1, 2)
    story.event("done", "a", outcome="timeout")
    story.decode("a")
    story.done("a", "timeout")
    story.event("late", "a", outcome="error")
    later(story, 5.0)


@silent
def a_request_that_the_engine_ended_at_the_same_time(story):
    ready(story, "a", A, 1, 2)
    story.event("late", "a", outcome="ok")
    story.end("a", "timeout")
    later(story, 5.0)


@breaks("duplicate-execution", "repeated-step")
def a_decode_made_twice(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    return story.decode(Row("a", tokens=(100,), start=6, seq_len=7))


@breaks("duplicate-execution", "repeated-step")
def a_prefill_made_twice(story):
    ready(story, "a", A, 1, 2)
    invocation = story.prefill("a")
    story.decode("a")
    return invocation


@breaks("duplicate-execution", "repeated-step", also=(("wrong-kv-read", "padding"),))
def a_prefill_made_again_over_the_answer(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    story.token("a", 101)
    invocation = story.prefill("a")  # its padding is written over the first decode's slot
    story.lengths["a"] = 7
    story.decode("a")
    return invocation


@breaks("duplicate-execution", "repeated-step")
def a_row_that_is_in_an_invocation_twice(story):
    ready(story, "a", A, 1, 2)
    return story.decode("a", Row("a", tokens=(100,), start=6, seq_len=7))


@breaks(
    "position-mismatch",
    "behind",
    page=2,
    severity=WRONG_DATA,
    also=(("token-mismatch", "wrong-token"), ("seq-len-mismatch", "underread")),
)
def a_decode_with_the_last_ones_arguments(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    story.token("a", 101)
    return story.decode(Row("a", tokens=(100,), start=6, seq_len=7))


@breaks(
    "block-table-mismatch",
    "free-page",
    page=5,
    also=(("duplicate-execution", "repeated-step"), ("wrong-kv-read", "uninitialized")),
)
def a_decode_made_again_with_another_table(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    return story.decode(Row("a", tokens=(100,), start=6, seq_len=7, table=(1, 5)))


@breaks("empty-answer", "no-tokens")
def a_request_without_a_token(story):
    begin(story, "a", A, 1, 2)
    return story.end("a", "empty")


@breaks("stuck-request", "not-ended", close=False)
def a_request_never_ended(story):
    ready(story, "a", A, 1, 2)


@breaks("stuck-request", "not-ended", close=False)
def a_request_that_stood_still_when_its_process_was_killed(story):
    ready(story, "a", A, 1, 2)
    story.event("cut", t_s=3600.0)


def test_a_request_that_went_on_when_its_process_was_killed_is_not_held_against_the_engine():
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    story.event("cut", late_s=0.007, request_ids=["a"])
    findings = story.check(close=False)
    assert not findings.groups
    assert any("at most 7 ms before its process did; 1 request has" in n for n in findings.notes)


@silent
def a_request_that_was_rejected(story):
    story.submit("a", A)
    story.done("a", "rejected")
    story.submit("b", B)
    story.done("b", "error")


@breaks("token-without-invocation", "extra-token", severity=WRONG_DATA)
def a_token_from_nowhere(story):
    ready(story, "a", A, 1, 2)
    return story.token("a", 101)


@breaks("token-without-invocation", "extra-token", severity=WRONG_DATA)
def a_token_from_nowhere_after_chunks(story):
    begin(story, "a", A, 1, 2)
    story.prefill(Row("a", start=0, seq_len=4))
    story.prefill(Row("a", start=4))
    return story.token("a", 100, 101)


@breaks("token-without-invocation", "completed-early")
def an_answer_cut_short(story):
    ready(story, "a", A, 1, 2)
    story.release("a")
    return story.done("a", "ok", missing=3)


@silent
def an_answer_cut_short_by_an_error(story):
    ready(story, "a", A, 1, 2)
    story.release("a")
    story.done("a", "error", missing=3)
    begin(story, "b", B, 1, 2)
    story.prefill("b")
    story.token("b", 1)
    story.release("b")
    story.done("b", "ok", missing=0)


# -- at rest -----------------------------------------------------------------------------------


@breaks(
    "not-quiescent",
    "missing-pages",
    request=None,
    page=3,
    also=(("state-divergence", "untracked-change"),),
)
def a_page_that_is_gone_at_rest(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    return story.snapshot(free=[0, 1, 2, 4, 5, 6, 7])


@breaks("not-quiescent", "missing-pages", request=None, page=1)
def pages_of_a_request_that_was_given_up(story):
    ready(story, "a", A, 1, 2)
    story.done("a", "error")
    place = story.snapshot()
    story.snapshot()  # said once
    return place


@breaks("not-quiescent", "references", request=None, page=1)
def a_reference_left_at_rest(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.drop("a", 1, 2)
    story.free("a", 2)
    story.done("a", "error")
    return story.snapshot()


@breaks(
    "state-divergence",
    "two-states",
    request=None,
    page=1,
    also=(("state-divergence", "untracked-change"),),
)
def a_page_free_and_cached_at_rest(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.end("a")
    return story.snapshot(free=[0, 1, 2, 3, 4, 5, 6, 7])


@breaks("state-divergence", "wrong-key", request=None, page=1)
def a_node_under_another_key(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.end("a")
    return story.snapshot(misfiled=[1])


@breaks("state-divergence", "untracked-change", request=None)
def a_node_that_no_operation_made(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    strange = Node(1, 0, 5, A[:4], 0, True)
    return story.snapshot(nodes=(ROOT, strange), free=[0, 1, 2, 3, 4, 6, 7])


@silent
def a_snapshot_while_somebody_is_served(story):
    begin(story, "a", A, 1, 2)
    story.snapshot(free=[0])
    story.end("a")
    story.snapshot(free=[0], consistent=False)
    story.snapshot()


# -- locks -------------------------------------------------------------------------------------


@breaks("lockset-violation", "free-list", request="b", other="a", page=3)
def two_threads_without_a_common_lock(story):
    story.submit("a", A)
    story.submit("b", B)
    with story.within("acquire", "a"):
        story.acquire("a", 1, locks=("the cache's lock",))
    story.hold("a", 1)
    with story.within("acquire", "b", thread="w1"):
        place = story.acquire("b", 3, locks=("the pool's lock",))
    story.hold("b", 3)
    return place


@breaks("lockset-violation", "free-list", request="b", other="a", page=3)
def two_threads_without_any_lock(story):
    story.submit("a", A)
    story.submit("b", B)
    story.acquire("a", 1, locks=())
    story.hold("a", 1)
    with story.within(thread="w1"):
        place = story.acquire("b", 3, locks=())
    story.hold("b", 3)
    return place


@silent
def one_common_lock_among_several(story):
    story.submit("a", A)
    story.submit("b", B)
    story.acquire("a", 1, locks=())  # alone as yet, and before the one that counts
    story.acquire("a", 2, locks=("cache", "pool"))
    story.hold("a", 1, 2)
    with story.within(thread="w1"):
        story.acquire("b", 3, locks=("pool", "ref-count-mismatch"))
    story.hold("b", 3)


@silent
def locks_that_were_not_recorded(story):
    story.submit("a", A)
    story.submit("b", B)
    story.allocate("a", 1)
    with story.within(thread="w1"):
        story.allocate("b", 3)


@silent
def parts_of_the_cache_with_a_lock_each(story):
    ready(story, "a", A, 1, 2)
    with story.within("publish", "a", thread="w1"):
        story.event("create", "a", (1,), node=1, parent=0, tokens=(11, 12, 13, 14), locks=("trie",))
        story.event("leaf_added", "a", node=1, locks=("trie",))


# -- contents ----------------------------------------------------------------------------------


@breaks("nonfinite-kv", "own-page", page=2, slot=3, severity=WRONG_DATA)
def nan_in_a_requests_page(story):
    ready(story, "a", A, 1, 2)
    return story.event("nonfinite", "a", (2,), value=3)


@breaks("nonfinite-kv", "padding-page", page=0, slot=1, severity=WRONG_DATA)
def nan_in_the_padding_page(story):
    ready(story, "a", A, 1, 2)
    return story.event("nonfinite", "a", (0,), value=1)


@breaks("partial-copy", "missing-slots", page=3, slot=2, severity=WRONG_DATA)
def a_copy_that_lacks_a_slot(story):
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    return story.copy(2, 3, "a", value=2)


@breaks("write-after-free", "quarantined-page", request=None, other="a", page=2)
def a_page_written_in_quarantine(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    return story.event("written_after_free", None, (2,))


@pytest.mark.parametrize("page", [999, 8, -3])
def test_a_page_beyond_the_pool_is_called_so_and_no_page_of_others(page: int) -> None:
    story = TraceBuilder()
    begin(story, "a", A, 1, 2)
    story.prefill(Row("a", table=(1, page)))
    findings = story.check()
    found = findings.group("block-table-mismatch").first
    assert (found.cause, found.page) == ("no-such-page", page)
    assert found.text == (
        f"The block table of a in a prefill has page {page} at place 1, which is beyond the pool of"
        " 8 pages."
    )
    assert findings.group("position-mismatch").first.text == (
        f"Position 4 of a is written to page {page}, beyond the pool of 8 pages."
    )
    assert "There is no such page" in meaning_of("block-table-mismatch", found.cause)


@pytest.mark.parametrize(
    ("page", "cause"),
    [(5, "cached-page"), (6, "leaked-page"), (3, "free-page"), (0, "padding-page")],
)
def test_a_page_that_nobody_holds_is_no_page_of_others(page: int, cause: str) -> None:
    story = TraceBuilder(nodes=[Node(1, 0, 5, (91, 92, 93, 94), 0, True)], taken=(6,))
    begin(story, "a", A, 1, 2)
    story.prefill(Row("a", table=(1, page)))
    found = story.check(close=False).group("block-table-mismatch").first
    assert (found.cause, found.page) == (cause, page)


# -- the way back ------------------------------------------------------------------------------


def answering(story: TraceBuilder, request: str, prompt: tuple[int, ...], *pages: int) -> None:
    """Have a request prefilled whose results are followed, with its first token."""
    begin(story, request, prompt, *pages)
    story.results_of(story.prefill(request), 100)
    story.chosen(request, 100)
    story.token(request, 100)


def decoded(story: TraceBuilder, *requests: str, token: int = 101) -> Invocation:
    return story.results_of(story.decode(*requests), *[token for _ in requests])


@breaks("logits-mismatch", "other-request", other="b", severity=WRONG_DATA)
def logits_of_the_other_row(story):
    answering(story, "a", A, 1, 2)
    answering(story, "b", B, 3, 4)
    decoded(story, "a", "b")
    return story.chosen("a", 101, story.results["b"])


@breaks("logits-mismatch", "earlier-invocation", severity=WRONG_DATA)
def logits_of_the_invocation_before(story):
    answering(story, "a", A, 1, 2)
    before = story.results["a"]
    decoded(story, "a")
    return story.chosen("a", 100, before)


@breaks("logits-mismatch", "earlier-invocation", severity=WRONG_DATA)
def logits_that_a_token_was_chosen_from(story):
    answering(story, "a", A, 1, 2)
    return story.chosen("a", 100)


@breaks("logits-mismatch", "unknown-logits", severity=WRONG_DATA)
def logits_that_no_row_has(story):
    answering(story, "a", A, 1, 2)
    decoded(story, "a")
    return story.chosen("a", 101, 77)


@breaks("sampling-mismatch", "not-argmax", severity=WRONG_DATA)
def another_token_than_the_likeliest(story):
    answering(story, "a", A, 1, 2)
    decoded(story, "a")
    return story.chosen("a", 102)


@breaks("sampling-mismatch", "changed", severity=WRONG_DATA)
def a_token_changed_when_it_was_chosen(story):
    answering(story, "a", A, 1, 2)
    decoded(story, "a")
    story.chosen("a", 101)
    return story.token("a", 102)


@breaks(
    "sampling-mismatch",
    "not-sampled",
    severity=WRONG_DATA,
    also=(("token-without-invocation", "extra-token"),),
)
def a_token_that_was_never_chosen(story):
    answering(story, "a", A, 1, 2)
    return story.token("a", 101)


def answered(*tokens: int) -> Callable[[TraceBuilder], Step]:
    def tell(story):
        answering(story, "b", B, 3, 4)
        decoded(story, "b", token=9)
        story.chosen("b", 9)
        answering(story, "a", A, 1, 2)
        for token in (101, 102):
            decoded(story, "a", token=token)
            story.chosen("a", token)
            story.token("a", token)
        return story.answered("a", *tokens)

    tell.__name__ = f"answered_{'_'.join(map(str, tokens))}"
    return tell


for words, due in (
    ("missing-tokens", (100, 102)),
    ("extra-tokens", (100, 101, 101, 102)),
    ("wrong-tokens", (100, 102, 101)),
):
    breaks("answer-mismatch", words, severity=WRONG_DATA)(answered(*due))
breaks("answer-mismatch", "other-request", other="b", severity=WRONG_DATA)(answered(100, 9))


@breaks("answer-mismatch", "answered-early", severity=WRONG_DATA)
def an_answer_before_its_last_token(story):
    answering(story, "a", A, 1, 2)
    story.answered("a", 100)
    decoded(story, "a")
    return story.chosen("a", 101)


@breaks("duplicate-answer", "answered-again")
def an_answer_again(story):
    answering(story, "a", A, 1, 2)
    story.answered("a", 100)
    story.end("a")
    return story.answered("a", 100, count=2)


@silent
def an_answer_as_it_was_chosen(story):
    answered(100, 101, 102)(story)


@silent
def an_answer_after_its_request_was_given_up(story):
    answering(story, "a", A, 1, 2)
    story.release("a")
    story.answered("a", 100)


@silent
def a_choice_after_an_invocation_that_could_not_be_read(story):
    answering(story, "a", A, 1, 2)
    invocation = decoded(story, "a")
    place = next(i for i, (_, item) in enumerate(story.items) if item is invocation)
    story.items[place] = (invocation.seq, Unread(invocation.invocation_id, ["a"], "decode"))
    story.chosen("a", 101, 77)


@silent
def rows_with_the_same_logits(story):
    answering(story, "a", A, 1, 2)
    answering(story, "b", B, 3, 4)
    invocation = decoded(story, "a", "b")
    invocation.result_digests[1] = invocation.result_digests[0]
    story.chosen("b", 101, invocation.result_digests[0])
    story.chosen("a", 101, invocation.result_digests[0])


@silent
def a_choice_from_logits_with_a_nan(story):
    answering(story, "a", A, 1, 2)
    decoded(story, "a", token=-1)
    story.chosen("a", 7)


@silent
def tokens_that_were_not_followed_from_the_first(story):
    ready(story, "a", A, 1, 2)
    decoded(story, "a")
    story.chosen("a", 101)
    story.token("a", 101)
    story.answered("a", 100, 101)


# -- what the device reads ---------------------------------------------------------------------


def changed_argument(*values):
    names = ("argument", "row", "column", "filled", "read", "moment")
    return dict(zip(names, values, strict=True))


@breaks("argument-changed", "seq_lens", severity=WRONG_DATA)
def a_length_that_changed_after_filling(story):
    ready(story, "a", A, 1, 2)
    invocation = story.decode("a")
    invocation.changed = [changed_argument("seq_lens", 0, 0, 7, 6, "returned")]
    return invocation


@breaks("argument-changed", "block_tables", page=5)
def a_table_that_changed_before_the_landing(story):
    ready(story, "a", A, 1, 2)
    invocation = story.decode("a")
    invocation.changed = [changed_argument("block_tables", 0, 1, 2, 5, "landed")]
    return invocation


@breaks("argument-changed", "tokens", request=None)
def padding_that_changed_after_filling(story):
    ready(story, "a", A, 1, 2)
    invocation = story.decode("a", None)
    invocation.changed = [changed_argument("tokens", 1, 0, 0, 3, "returned")]
    return invocation


@breaks("read-before-write", "write-pending", page=2, slot=2, severity=WRONG_DATA)
def a_decode_before_the_one_before_has_landed(story):
    ready(story, "a", A, 1, 2)
    first = story.results_of(story.decode("a", lands=False), 101)
    story.token("a", 101)
    second = decoded(story, "a", token=102)
    story.land(first)
    return second


@silent
def a_decode_when_the_own_row_of_the_one_before_has_landed(story):
    answering(story, "a", A, 1, 2)
    first = story.results_of(story.decode("a", lands=False), 101)
    story.chosen("a", 101)
    story.token("a", 101)
    decoded(story, "a", token=102)
    story.land(first)


@silent
def a_shared_page_that_is_written_again_as_it_was(story):
    answering(story, "a", A, 1, 2)
    story.submit("b", A[:4])
    story.hold("b", 1)
    again = story.results_of(story.prefill("b", lands=False), 100)
    decoded(story, "a")
    story.land(again)


# -- the bytes -----------------------------------------------------------------------------------


def changed(story: TraceBuilder, page: int, *slots: int, **said: object) -> int:
    """Have slots of a page hold other bytes; nothing wrote them."""
    found = {
        "slots": slots,
        "blocks": [{"layer": 1, "kind": "V", "head": 0}],
        "zeros": False,
        "moment": "landing",
        "since_invocation": -1,
        "seen_invocation": 9,
        "holders": ["a"],
        "copy_of": None,
    }
    return story.event("bytes_changed", None, (page,), changed_bytes=found | said)


def kept(story: TraceBuilder, invocation: Invocation, page: int, slot: int, **said: object) -> int:
    """Have a slot that an invocation wrote hold what it held before."""
    slots = [{"slot": slot, "whole": True, "blocks": None, "zeros": False, "other_token": False,
              **said}]  # fmt: skip
    return story.event("bytes_kept", "a", (page,), value=invocation.invocation_id, kept_bytes=slots)


@breaks("kv-corruption", "changed", page=1, slot=2, severity=WRONG_DATA)
def a_byte_that_changed(story):
    ready(story, "a", A, 1, 2)
    return changed(story, 1, 2)


@breaks("kv-corruption", "other-slot", other="b", page=1, slot=0, severity=WRONG_DATA)
def bytes_of_another_request(story):
    ready(story, "a", A, 1, 2)
    ready(story, "b", B, 3, 4)
    return changed(story, 1, 0, 1, from_page=3, from_slot=0, blocks=None)


@breaks("kv-corruption", "free-page", request=None, page=7, slot=0)
def a_byte_of_a_free_page(story):
    ready(story, "a", A, 1, 2)
    return changed(story, 7, 0, moment="end", zeros=True, holders=[])


@breaks("kv-corruption", "copied-page", page=3, slot=1, severity=WRONG_DATA)
def a_copy_without_a_layer(story):
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    story.copy(1, 3, "a")
    return changed(story, 3, 1, copy_of=1)


@breaks("lost-write", "whole-slot", page=2, slot=1, severity=WRONG_DATA)
def a_write_that_does_not_arrive(story):
    invocation = ready(story, "a", A, 1, 2)
    return kept(story, invocation, 2, 1, other_token=True)


@breaks("lost-write", "part-of-slot", page=1, slot=0, severity=WRONG_DATA)
def a_head_of_zeros(story):
    invocation = ready(story, "a", A, 1, 2)
    blocks = [{"layer": layer, "kind": "K", "head": 1} for layer in (0, 1)]
    return kept(story, invocation, 1, 0, whole=False, zeros=True, blocks=blocks)


@silent
def a_slot_that_held_the_same_from_before_the_watching(story):
    kept(story, ready(story, "a", A, 1, 2), 2, 1)


# -- all of them -------------------------------------------------------------------------------


def place_of(story: TraceBuilder, kind: str) -> int:
    """Return the place of the last event of a kind."""
    return max(seq for seq, item in story.items if getattr(item, "kind", None) == kind)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.tell.__name__)
def test_a_broken_rule_is_told_at_its_step(case: Case) -> None:
    story = TraceBuilder()
    step = case.tell(story)
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
    if case.page is not None and case.page < story.world.page_count:
        assert first.scene.pages[0].page == case.page


NOT_CHECKED = (
    beams_that_share_a_requests_name,
    a_request_under_way_before_the_watching_began,
    a_choice_after_an_invocation_that_could_not_be_read,
)
"""Stories in which rows cannot be followed, which is said."""


@pytest.mark.parametrize("tell", SILENT, ids=lambda tell: tell.__name__)
def test_a_near_miss_is_silent(tell: Callable[[TraceBuilder], object]) -> None:
    story = TraceBuilder()
    tell(story)
    findings = story.check()
    assert not findings, str(findings)
    assert not findings.notes
    assert bool(findings.unchecked) == (tell in NOT_CHECKED)


@pytest.mark.xfail(
    strict=True,
    reason="An invocation is checked where it starts, and no rule minds what happens until it"
    " ends.",
)
def test_a_page_freed_and_rewritten_during_an_invocation_is_told() -> None:
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    invocation = story.decode("a", lands=False)
    story.drop("a", 1, 2)
    story.free("a", 1, 2)
    begin(story, "b", B, 1, 2)
    story.prefill("b")
    story.land(invocation)
    story.token("a", 101)
    assert story.check()


def test_a_page_that_does_not_exist_is_wrong_data() -> None:
    story = TraceBuilder()
    ready(story, "a", A, 1, 2)
    story.decode(Row("a", table=(99, 2)))
    assert story.check().first_wrong_data is not None


def test_a_page_in_use_before_the_watching_is_minded_when_it_is_reused() -> None:
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


def test_every_rule_is_broken_here_and_says_what_must_hold() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {case.rule for case in CASES} == set(names)
    for rule in RULES:
        assert rule.name.strip()
        assert rule.sentence.endswith(".")
        assert rule.sentence[0].isupper()


def test_strangers_that_hold_pages_are_left_alone() -> None:
    story = TraceBuilder(holdings={"stranger": [1, 2]})
    begin(story, "a", A, 3, 4)
    story.prefill("a")
    story.token("a", 100)
    story.decode("a", Row("stranger", tokens=(3,), start=6, seq_len=7, table=(1, 2)))
    story.end("a")
    story.snapshot()  # the stranger still has its pages, and nothing is said about it
    story.drop("stranger", 1, 2)
    story.free("stranger", 1, 2)
    story.snapshot()
    findings = story.check()
    assert not findings, str(findings)


def test_pages_in_use_before_the_watching_are_believed() -> None:
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
    page = first.scene.pages[0]
    assert [slot.request_id for slot in page.before] == ["a"] * 4
    assert [slot.request_id for slot in page.after] == ["b"] * 4
    assert [slot.position for slot in page.after] == [0, 1, 2, 3]
