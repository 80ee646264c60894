"""Codes of findings in runs of schema versions 1 and 2."""

from __future__ import annotations

import pyarrow as pa

_TABLE = """\
own tokens -> token-mismatch
    another token -> wrong-token
    a token left out -> missing-token
own position -> position-mismatch
    too late -> ahead
    too early -> behind
    no page for it -> no-page
own length -> seq-len-mismatch
    beyond it -> overread
    short of it -> underread
within context -> context-overflow
    beyond it -> past-context
one writer -> write-write-conflict
    two rows -> two-rows
    a padding row -> padding-row
own prefix -> wrong-kv-read
    nothing -> uninitialized
    padding -> padding
    another position of its own -> wrong-position
    a freed page's old data -> stale-after-free
    another request's data -> cross-request
sound origin -> tainted-kv-read
    its own earlier steps -> own-steps
    another request's steps -> other-request
block table -> block-table-mismatch
    no such page -> no-such-page
    the padding page -> padding-page
    a free page -> free-page
    a cached page -> cached-page
    a leaked page -> leaked-page
    a page of others -> foreign-page
    a freed page -> freed-page
    too short -> too-short
    one page twice -> duplicate-page
table padding -> block-table-padding
    no such page -> no-such-page
    the padding page -> padding-page
    a free page -> free-page
    a cached page -> cached-page
    a leaked page -> leaked-page
    a page of others -> foreign-page
    in a padding row -> padding-row
shared pages -> shared-page-write
    by padding -> padding-row
    by a row -> request-row
cached prefix -> cached-prefix-mismatch
    nothing written -> uninitialized
    padding -> padding
    another prefix -> other-prefix
one state -> double-allocation
    handed out twice -> page-in-use
    twice in one allocation -> same-request
one state -> double-free
    freed twice -> already-free
one state -> free-while-referenced
    freed while held -> held
    freed while cached -> cached
    held while free -> held-after-free
one state -> free-count-mismatch
    fewer free pages than were freed -> too-few
    more free pages than were freed -> too-many
no leak -> page-leak
    given up and not freed -> dropped
    acquired and not freed -> acquired
    taken away and not freed -> unlinked
    still held -> still-held
padding page -> padding-page-allocated
    given out -> allocated
allocation lists -> allocation-list-mismatch
    a held page missing -> held-page-missing
    held and free -> held-and-free
    set aside twice -> pending-free-twice
    set aside and free -> pending-free-and-free
    set aside and cached -> pending-free-and-cached
    listed twice -> listed-twice
    listed and free -> listed-and-free
    listed and cached -> listed-and-cached
references -> ref-count-mismatch
    negative -> negative
    changed for nobody -> no-owner
    given back too often -> over-released
    not given back -> not-released
eviction -> evicted-while-referenced
    referenced node -> referenced-node
protected -> unprotected-page
    no reference -> no-reference
leaves -> leaf-set-mismatch
    inner node -> inner-node
    orphan -> unlinked-node
    missing -> missing-leaf
reachable -> orphaned-node
    replaced -> overwritten
parents -> parent-mismatch
    another's child -> wrong-child
    wrong parent pointer -> wrong-parent
completion -> stuck-request
    dead worker -> worker-died
    lock not released -> lock-held
    invocation without end -> invocation-pending
    stuck batcher -> batcher-stalled
    lost wake-up -> lost-wakeup
    not ended -> not-ended
completion -> empty-answer
    answered with nothing -> no-tokens
flown tokens -> token-without-invocation
    token without an invocation -> extra-token
    completed early -> completed-early
one execution -> duplicate-execution
    executed twice -> repeated-step
at rest -> not-quiescent
    pages out of the pool -> missing-pages
    references -> references
accounts -> state-divergence
    under another key -> wrong-key
    in two places -> two-states
    changed behind its operations -> untracked-change
common lock -> lockset-violation
    the free list -> free-list
    the trie -> trie
    the set of leaves -> leaf-set
    the references -> ref-counts
    the pages set aside -> pending-free
finite contents -> nonfinite-kv
    the padding page -> padding-page
    a page that it does not hold -> foreign-page
    a request's page -> own-page
whole copies -> partial-copy
    short copy -> missing-slots
written after free -> write-after-free
    written -> quarantined-page
unwritten bytes -> kv-corruption
    not all of a copied page -> copied-page
    of a free page -> free-page
    another slot's bytes -> other-slot
    changed -> changed
arrived writes -> lost-write
    nothing arrived -> whole-slot
    a part is missing -> part-of-slot
own result -> logits-mismatch
    an earlier invocation's -> earlier-invocation
    no row's last position -> unknown-logits
    another request's row -> other-request
own token -> sampling-mismatch
    not the likeliest -> not-argmax
    never chosen -> not-sampled
    changed afterwards -> changed
whole answer -> answer-mismatch
    another request's answer -> other-request
    tokens left out -> missing-tokens
    tokens too many -> extra-tokens
    other tokens -> wrong-tokens
    before its last token -> answered-early
one answer -> duplicate-answer
    answered again -> answered-again
arguments as filled -> argument-changed
landed before read -> read-before-write
    still under way -> write-pending
"""


def _codes() -> dict[str, dict[str, dict[str, str]]]:
    codes: dict[str, dict[str, dict[str, str]]] = {}
    causes: dict[str, str] = {}
    for line in _TABLE.splitlines():
        before, after = line.strip().split(" -> ")
        if line.startswith(" "):
            causes[before] = after
        else:
            causes = codes.setdefault(before, {}).setdefault(after, {})
    return codes


CODES = _codes()
"""New rules of each old rule, each with its causes by their old names."""


def code_of(rule: str, cause: str | None) -> tuple[str, str | None]:
    """Return the codes of a rule and a cause; unknown names stay unchanged."""
    now = CODES.get(rule, {})
    for code, causes in now.items():
        if cause in causes:
            return code, causes[cause]
    return next(iter(now), rule), cause


def with_codes(findings: pa.Table) -> pa.Table:
    """Return a table `findings` of an older version with current codes."""
    pairs = zip(findings["rule"].to_pylist(), findings["cause"].to_pylist(), strict=True)
    codes = [code_of(rule, cause) for rule, cause in pairs]
    for column, name in enumerate(("rule", "cause")):
        place = findings.column_names.index(name)
        values = pa.array([code[column] for code in codes], findings.schema.field(place).type)
        findings = findings.set_column(place, name, values)
    return findings
