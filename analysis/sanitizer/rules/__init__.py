"""The rules that must always hold, one class each.

A rule states its sentence and yields a Finding wherever it is broken. It is asked at what it has a
method for: `on_<kind>(world, event)` before the world takes note of an event of that kind,
`after_<kind>(world, event)` afterwards, `invocation(world, passage)` when an invocation has gone
through the shadow, `look(world, snapshot)` at every snapshot that was taken between two operations,
`rest(world, snapshot)` when moreover no request is under way, `finish(world)` at the very end. To
add one, write it into a module here and put it into RULES.
"""

from __future__ import annotations

from analysis.sanitizer.rules.accounting import (
    AllocationLists,
    DoubleAllocation,
    DoubleFree,
    FreeCount,
    FreeWhileReferenced,
    Leak,
    PaddingPage,
)
from analysis.sanitizer.rules.arguments import ArgumentsAsFilled, LandedBeforeRead
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.rules.contents import (
    ArrivedWrites,
    FiniteContents,
    UnwrittenBytes,
    WholeCopies,
    WrittenAfterFree,
)
from analysis.sanitizer.rules.liveness import Completed, EmptyAnswer, FlownTokens, OnceExecuted
from analysis.sanitizer.rules.locking import CommonLock
from analysis.sanitizer.rules.provenance import (
    Inherited,
    OneWriter,
    OwnLength,
    OwnPosition,
    OwnPrefix,
    OwnTokens,
    WithinContext,
)
from analysis.sanitizer.rules.references import Protected, References, Unreferenced
from analysis.sanitizer.rules.rest import AtRest, Watched
from analysis.sanitizer.rules.results import OneAnswer, OwnResult, OwnToken, WholeAnswer
from analysis.sanitizer.rules.tables import BlockTable, SharedPages, TablePadding
from analysis.sanitizer.rules.trie import CachedPrefix, Leaves, Parents, Reachable

RULES: tuple[type[Rule], ...] = (
    OwnTokens, OwnPosition, OwnLength, WithinContext, OneWriter, OwnPrefix, Inherited,
    BlockTable, TablePadding, SharedPages, CachedPrefix,
    DoubleAllocation, DoubleFree, FreeWhileReferenced, FreeCount, Leak, PaddingPage,
    AllocationLists, References, Unreferenced, Protected,
    Leaves, Reachable, Parents,
    Completed, EmptyAnswer, FlownTokens, OnceExecuted, AtRest, Watched, CommonLock,
    FiniteContents, WholeCopies, WrittenAfterFree, UnwrittenBytes, ArrivedWrites,
    OwnResult, OwnToken, WholeAnswer, OneAnswer, ArgumentsAsFilled, LandedBeforeRead,
)  # fmt: skip

__all__ = ["RULES", "Rule"]
