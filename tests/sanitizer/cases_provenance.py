"""Cases of rules: keys, values and arguments of rows."""

from __future__ import annotations

from rule_cases import A, B, begin, breaks, ready, silent
from trace_builder import Row

from analysis.sanitizer.findings import AT_RISK, WRONG_DATA


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
    # It reads its first page from another place while it computes what it publishes afterwards.
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
    strange = Row("preexisting", tokens=(3,), start=17, seq_len=30, table=(7, 5))
    story.decode("a", strange)
    story.token("a", 101)
    story.decode("a")
    story.event("done", "preexisting", outcome="ok")
