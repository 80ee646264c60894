"""What it leads to when a rule is broken in one way or another: the mechanism, in a sentence."""

from __future__ import annotations

_SHARED = "Two requests can come to hold the page, and write over each other."
_PADDED = (
    "Page 0, with which rows and block tables are padded, is one of the pool's: whatever padding"
    " writes lands in its holder's data."
)
MEANINGS: dict[tuple[str, str | None], str] = {
    ("seq-len-mismatch", "overread"): (
        "The row's softmax has weights for slots that are not its own: leftovers are mixed in."
    ),
    ("seq-len-mismatch", "underread"): "The row is blind to its own last tokens.",
    ("context-overflow", None): (
        "The model was not made for such positions: what it answers from here on means nothing."
    ),
    ("wrong-kv-read", None): (
        "The row attends to keys and values of other tokens, so its next token is a guess."
    ),
    ("tainted-kv-read", None): (
        "What was computed from wrong data is itself in the cache now, and is read again and again."
    ),
    ("block-table-mismatch", "padding-page"): (
        "The row has entered a block for which it holds no page. Block tables are padded with page"
        " 0, which it therefore shares with every row in the same place, and with padding."
    ),
    ("block-table-mismatch", "no-such-page"): (
        "There is no such page: what the row writes there is lost, or lands in other memory."
    ),
    (
        "block-table-mismatch",
        "free-page",
    ): "Whoever takes the page next overwrites what the row reads.",
    (
        "block-table-mismatch",
        None,
    ): "The row writes to a page that is not its own, and reads from it.",
    ("block-table-padding", None): (
        "The mask hides the page from reads. A padded prompt is written to it all the same, and a"
        " length that is too long reads it."
    ),
    (
        "block-table-mismatch",
        "freed-page",
    ): "Whoever takes the page next overwrites what the row reads.",
    ("write-write-conflict", None): (
        "Rows that have the same page for their own write over each other; the last one wins."
    ),
    ("shared-page-write", "padding-row"): _PADDED,
    ("shared-page-write", None): "Whoever else uses the page reads what was written over its data.",
    ("evicted-while-referenced", None): "A page that a request still reads goes back to the pool.",
    ("token-mismatch", None): "The row computes an answer to another prompt.",
    (
        "position-mismatch",
        None,
    ): "The token's key and value go to another place than where it is read.",
    ("token-without-invocation", None): "The answer has a token that no computation gave.",
    ("nonfinite-kv", None): "A NaN in a masked slot is still in the sum: the whole row is lost.",
    ("partial-copy", None): "Whoever reads the copy lacks what its source has.",
    ("write-after-free", None): "Somebody writes to a page that may be another's by now.",
    ("kv-corruption", None): (
        "Something beside the model writes to the pages: whoever attends to the slot is wrong."
    ),
    ("kv-corruption", "free-page"): (
        "Something beside the model writes to the pages; here it met one that nobody had."
    ),
    ("kv-corruption", "copied-page"): ("Whoever reads the copy lacks what its source has."),
    ("lost-write", None): "Every later token of the request attends to what is missing there.",
    (
        "state-divergence",
        None,
    ): "The cache is not what its own operations made it: nothing in it is sure.",
    ("padding-page-allocated", None): _PADDED,
    ("cached-prefix-mismatch", "padding"): _PADDED,
    (
        "cached-prefix-mismatch",
        None,
    ): "Whoever finds the page under its tokens reads something else.",
    ("page-leak", None): (
        "The page is lost to the pool; with every request there are fewer, until none is left."
    ),
    ("not-quiescent", "missing-pages"): "The same leaks, counted while nobody is served.",
    ("not-quiescent", None): "Something was not given back, and is missing from now on.",
    ("not-quiescent", "references"): "The same references, counted while nobody is served.",
    ("ref-count-mismatch", "not-released"): (
        "The node can never be evicted: the cache fills up with pages that nobody needs."
    ),
    ("ref-count-mismatch", None): "The node may be evicted while a request still reads its page.",
    ("leaf-set-mismatch", "inner-node"): (
        "Eviction chooses among leaves: it may take this one out from under its children, which"
        " nobody finds any more then."
    ),
    (
        "leaf-set-mismatch",
        None,
    ): "Eviction chooses from this set: it takes a wrong node, or misses one.",
    ("orphaned-node", None): "Its page is served to nobody any more, and may never be evicted.",
    ("orphaned-node", "overwritten"): (
        "Two requests publish the same prefix and the later one takes the place: the other's node"
        " and page are found by nobody any more."
    ),
    ("parent-mismatch", None): (
        "Eviction takes the node out by its parent pointer: it fails, or takes out another one."
    ),
    ("unprotected-page", None): (
        "The page may be evicted and given to another request while this one still reads it."
    ),
    ("allocation-list-mismatch", "held-page-missing"): (
        "A request that asks for the page by its number does not get it, and nothing frees it."
    ),
    ("allocation-list-mismatch", "listed-twice"): (
        "A request that asks for the page by its number notes it twice: what follows is cached"
        " under other tokens than its own."
    ),
    ("allocation-list-mismatch", None): (
        "The cache may free the page, or note it for a request, although it is another's by then."
    ),
    ("lockset-violation", None): (
        "Nothing keeps two threads from changing it at once, so a change can be lost."
    ),
    ("empty-answer", None): "The client takes an empty answer for a good one.",
    ("stuck-request", None): "The client waits for an answer that does not come.",
    ("logits-mismatch", None): "The token goes on another row's or another step's computation.",
    ("sampling-mismatch", None): "The answer goes on with a token that the model did not choose.",
    ("answer-mismatch", None): "The client gets another answer than the one that was computed.",
    ("duplicate-answer", None): "The second answer goes to nobody, or to whoever asks next.",
    ("argument-changed", None): "The device computes with other arguments than were meant.",
    ("read-before-write", None): (
        "Nothing makes the reader wait: it may read the slot before it is written."
    ),
    ("duplicate-execution", None): (
        "The step costs twice its time, and two results are there for one token."
    ),
    ("double-allocation", None): _SHARED,
    ("double-free", None): _SHARED,
    ("free-while-referenced", None): _SHARED,
    ("free-count-mismatch", None): "The pool has lost pages, or it can allocate a page twice.",
}
"""By rule and cause; None stands for all other causes of a rule."""


def meaning_of(rule: str, cause: str) -> str:
    """Return what a broken rule leads to; "" where nothing is known of it."""
    return MEANINGS.get((rule, cause)) or MEANINGS.get((rule, None)) or ""
