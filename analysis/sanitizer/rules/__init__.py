"""The rules of the sanitizer, one class each.

A rule has a code (`name`), a sentence, and a consequence for each code of a cause. Its methods
yield a Finding for each violation. They are optional, and are called
- `on_<kind>(state, event)`: before the state applies an event of that kind,
- `after_<kind>(state, event)`: after the state applied it,
- `invocation(state, step)`: after an invocation was executed on the shadow,
- `at_snapshot(state, snapshot)`: at every snapshot between two operations of the cache,
- `at_quiescence(state, snapshot)`: at such a snapshot while no request is under way,
- `finish(state)`: at the end.

To add a rule, write it in a module here, put it into RULES, and list it in docs/glossary.md.
"""

from __future__ import annotations

from analysis.sanitizer.rules import (
    accounting,
    arguments,
    contents,
    in_flight,
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
    in_flight.InFlightConflict,
)

__all__ = ["RULES", "Rule", "consequence_of", "limits_of"]

_BY_NAME = {rule.name: rule for rule in RULES}


def consequence_of(rule: str, cause: str) -> str:
    """Return the consequence of a violated rule; "" if it is unknown."""
    known = _BY_NAME.get(rule)
    return "" if known is None else known.causes.get(cause, "")


def limits_of(release: str | None) -> dict[str, str]:
    """Return the limits of each rule on a release; {} for an unsupported release."""
    capabilities = row_of(release).capabilities if release in KNOWN else frozenset()
    found = {}
    for rule in RULES if capabilities else ():
        if sentences := [s for need, s in rule.limits.items() if not need or need in capabilities]:
            found[rule.name] = " ".join(sentences)
    return found
