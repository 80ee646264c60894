"""The rules that must always hold, one class each.

A rule has a code (`name`), its sentence, and the codes of its causes with their consequences; it
yields a Finding wherever it is violated. It is called where it has a method: `on_<kind>(state,
event)` before the state applies an event of that kind, `after_<kind>(state, event)` afterwards,
`invocation(state, step)` when an invocation was executed on the shadow, `at_snapshot(state,
snapshot)` at every snapshot between two operations, `at_quiescence(state, snapshot)` if moreover no
request is under way, `finish(state)` at the end. To add one, write it in a module here, put it into
RULES, and list it in docs/glossary.md.
"""

from __future__ import annotations

from analysis.sanitizer.rules import (
    accounting,
    arguments,
    contents,
    liveness,
    locking,
    provenance,
    references,
    results,
    tables,
    trie,
)
from analysis.sanitizer.rules.base import Rule
from analysis.shortfin.releases import KNOWN, row_of

RULES: tuple[type[Rule], ...] = (
    provenance.TokenMismatch,
    provenance.PositionMismatch,
    provenance.SeqLenMismatch,
    provenance.ContextOverflow,
    provenance.WriteWriteConflict,
    provenance.WrongKVRead,
    provenance.TaintedKVRead,
    tables.BlockTableMismatch,
    tables.BlockTablePadding,
    tables.SharedPageWrite,
    trie.CachedPrefixMismatch,
    accounting.DoubleAllocation,
    accounting.DoubleFree,
    accounting.FreeWhileReferenced,
    accounting.FreeCountMismatch,
    accounting.PageLeak,
    accounting.PaddingPageAllocated,
    accounting.AllocationListMismatch,
    references.RefCountMismatch,
    references.EvictedWhileReferenced,
    references.UnprotectedPage,
    trie.LeafSetMismatch,
    trie.OrphanedNode,
    trie.ParentMismatch,
    liveness.StuckRequest,
    liveness.EmptyAnswer,
    liveness.TokenWithoutInvocation,
    liveness.DuplicateExecution,
    accounting.NotQuiescent,
    accounting.Reconciliation,
    locking.LocksetViolation,
    contents.NonfiniteKV,
    contents.PartialCopy,
    contents.WriteAfterFree,
    contents.KVCorruption,
    contents.LostWrite,
    results.LogitsMismatch,
    results.SamplingMismatch,
    results.AnswerMismatch,
    results.DuplicateAnswer,
    arguments.ArgumentChanged,
    arguments.ReadBeforeWrite,
)

__all__ = ["RULES", "Rule", "consequence_of", "limits_of"]

_BY_NAME = {rule.name: rule for rule in RULES}


def consequence_of(rule: str, cause: str) -> str:
    """Return what a violated rule leads to; "" if it is unknown."""
    known = _BY_NAME.get(rule)
    return "" if known is None else known.causes.get(cause, "")


def limits_of(release: str | None) -> dict[str, str]:
    """Return what rules cannot detect on a release, by rule; {} for an unsupported release."""
    capabilities = row_of(release).capabilities if release in KNOWN else frozenset()
    found = {}
    for rule in RULES if capabilities else ():
        if sentences := [s for need, s in rule.limits.items() if not need or need in capabilities]:
            found[rule.name] = " ".join(sentences)
    return found
