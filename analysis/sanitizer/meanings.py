"""What it leads to when a rule is broken in one way or another: the mechanism, in a sentence."""

from __future__ import annotations

_PADDED = (
    "Page 0, with which rows and block tables are padded, is one of the pool's: whatever padding"
    " writes lands in its holder's data."
)
MEANINGS: dict[tuple[str, str | None], str] = {
    ("own length", "beyond it"): (
        "The row's softmax has weights for slots that are not its own: leftovers are mixed in."
    ),
    ("own length", "short of it"): "The row is blind to its own last tokens.",
    ("within context", None): (
        "The model was not made for such positions: what it answers from here on means nothing."
    ),
    ("own prefix", None): (
        "The row attends to keys and values of other tokens, so its next token is a guess."
    ),
    ("sound origin", None): (
        "What was computed from wrong data is itself in the cache now, and is read again and again."
    ),
    ("block table", "the padding page"): (
        "The row has entered a block for which it holds no page. Block tables are padded with page"
        " 0, which it therefore shares with every row in the same place, and with padding."
    ),
    ("block table", "no such page"): (
        "There is no such page: what the row writes there is lost, or lands in other memory."
    ),
    ("block table", "a free page"): "Whoever takes the page next overwrites what the row reads.",
    ("block table", None): "The row writes to a page that is not its own, and reads from it.",
    ("table padding", None): (
        "The mask hides the page from reads. A padded prompt is written to it all the same, and a"
        " length that is too long reads it."
    ),
    ("block table", "a freed page"): "Whoever takes the page next overwrites what the row reads.",
    ("one writer", None): (
        "Rows that have the same page for their own write over each other; the last one wins."
    ),
    ("shared pages", "by padding"): _PADDED,
    ("shared pages", None): "Whoever else uses the page reads what was written over its data.",
    ("eviction", None): "A page that a request still reads goes back to the pool.",
    ("own tokens", None): "The row computes an answer to another prompt.",
    ("own position", None): "The token's key and value go to another place than where it is read.",
    ("flown tokens", None): "The answer has a token that no computation gave.",
    ("finite contents", None): "A NaN in a masked slot is still in the sum: the whole row is lost.",
    ("whole copies", None): "Whoever reads the copy lacks what its source has.",
    ("written after free", None): "Somebody writes to a page that may be another's by now.",
    ("unwritten bytes", None): (
        "Something beside the model writes to the pages: whoever attends to the slot is wrong."
    ),
    ("unwritten bytes", "of a free page"): (
        "Something beside the model writes to the pages; here it met one that nobody had."
    ),
    ("unwritten bytes", "not all of a copied page"): (
        "Whoever reads the copy lacks what its source has."
    ),
    ("arrived writes", None): "Every later token of the request attends to what is missing there.",
    ("accounts", None): "The cache is not what its own operations made it: nothing in it is sure.",
    ("padding page", None): _PADDED,
    ("cached prefix", "padding"): _PADDED,
    ("cached prefix", None): "Whoever finds the page under its tokens reads something else.",
    ("no leak", None): (
        "The page is lost to the pool; with every request there are fewer, until none is left."
    ),
    ("at rest", "pages out of the pool"): "The same leaks, counted while nobody is served.",
    ("at rest", None): "Something was not given back, and is missing from now on.",
    ("at rest", "references"): "The same references, counted while nobody is served.",
    ("references", "not given back"): (
        "The node can never be evicted: the cache fills up with pages that nobody needs."
    ),
    ("references", None): "The node may be evicted while a request still reads its page.",
    ("leaves", "inner node"): (
        "Eviction chooses among leaves: it may take this one out from under its children, which"
        " nobody finds any more then."
    ),
    ("leaves", None): "Eviction chooses from this set: it takes a wrong node, or misses one.",
    ("reachable", None): "Its page is served to nobody any more, and may never be evicted.",
    ("reachable", "replaced"): (
        "Two requests publish the same prefix and the later one takes the place: the other's node"
        " and page are found by nobody any more."
    ),
    ("parents", None): (
        "Eviction takes the node out by its parent pointer: it fails, or takes out another one."
    ),
    ("protected", None): (
        "The page may be evicted and given to another request while this one still reads it."
    ),
    ("allocation lists", "a held page missing"): (
        "A request that asks for the page by its number does not get it, and nothing frees it."
    ),
    ("allocation lists", "listed twice"): (
        "A request that asks for the page by its number notes it twice: what follows is cached"
        " under other tokens than its own."
    ),
    ("allocation lists", None): (
        "The cache may free the page, or note it for a request, although it is another's by then."
    ),
    ("common lock", None): (
        "Nothing keeps two threads from changing it at once, so a change can be lost."
    ),
    ("completion", "answered with nothing"): "The client takes an empty answer for a good one.",
    ("completion", None): "The client waits for an answer that does not come.",
    ("own result", None): "The token goes on another row's or another step's computation.",
    ("own token", None): "The answer goes on with a token that the model did not choose.",
    ("whole answer", None): "The client gets another answer than the one that was computed.",
    ("one answer", None): "The second answer goes to nobody, or to whoever asks next.",
    ("arguments as filled", None): "The device computes with other arguments than were meant.",
    ("landed before read", None): (
        "Nothing makes the reader wait: it may read the slot before it is written."
    ),
    ("one execution", None): (
        "The step costs twice its time, and two results are there for one token."
    ),
    ("one state", None): "Two requests can come to hold the page, and write over each other.",
}
"""By rule and cause; None stands for all other causes of a rule."""


def meaning_of(rule: str, cause: str) -> str:
    """Return what a broken rule leads to; "" where nothing is known of it."""
    return MEANINGS.get((rule, cause)) or MEANINGS.get((rule, None)) or ""
