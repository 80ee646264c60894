"""Cases of rules: results, answers, arguments and bytes."""

from __future__ import annotations

from collections.abc import Callable

from rule_cases import A, B, Step, begin, breaks, ready, silent
from trace_builder import TraceBuilder

from analysis.sanitizer.findings import WRONG_DATA
from analysis.sanitizer.trace import Invocation, UnknownInvocation


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
    def write(story):
        answering(story, "b", B, 3, 4)
        decoded(story, "b", token=9)
        story.chosen("b", 9)
        answering(story, "a", A, 1, 2)
        for token in (101, 102):
            decoded(story, "a", token=token)
            story.chosen("a", token)
            story.token("a", token)
        return story.answered("a", *tokens)

    write.__name__ = f"answered_{'_'.join(map(str, tokens))}"
    return write


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
    story.items[place] = (
        invocation.seq,
        UnknownInvocation(invocation.invocation_id, ["a"], "decode"),
    )
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
    first = story.results_of(story.decode("a", finishes=False), 101)
    story.token("a", 101)
    second = decoded(story, "a", token=102)
    story.finish(first)
    return second


@silent
def a_decode_when_the_own_row_of_the_one_before_has_landed(story):
    answering(story, "a", A, 1, 2)
    first = story.results_of(story.decode("a", finishes=False), 101)
    story.chosen("a", 101)
    story.token("a", 101)
    decoded(story, "a", token=102)
    story.finish(first)


@silent
def a_shared_page_that_is_written_again_as_it_was(story):
    answering(story, "a", A, 1, 2)
    story.submit("b", A[:4])
    story.hold("b", 1)
    again = story.results_of(story.prefill("b", finishes=False), 100)
    decoded(story, "a")
    story.finish(again)


def changed(story: TraceBuilder, page: int, *slots: int, **fields: object) -> int:
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
    return story.event("bytes_changed", None, (page,), changed_bytes=found | fields)


def kept(
    story: TraceBuilder, invocation: Invocation, page: int, slot: int, **fields: object
) -> int:
    """Have a slot that an invocation wrote hold what it held before."""
    slots = [{"slot": slot, "whole": True, "blocks": None, "zeros": False, "other_token": False,
              **fields}]  # fmt: skip
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
