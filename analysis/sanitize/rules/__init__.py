"""The rules that must always hold, one class each.

A rule states its sentence and yields a Finding wherever it is broken. It is asked at what it has a
method for: `on_<kind>(world, event)` before the world takes note of an event of that kind,
`after_<kind>(world, event)` afterwards, `flight(world, passage)` when a flight has gone through the
shadow, `look(world, snapshot)` at every snapshot that was taken between two operations,
`rest(world, snapshot)` when moreover no request is under way, `finish(world)` at the very end. To
add one, write it into a module here and put it into RULES.
"""

from __future__ import annotations

from analysis.sanitize.rules.accounting import AllocationLists, Leak, OneState, PaddingPage
from analysis.sanitize.rules.arguments import ArgumentsAsFilled, LandedBeforeRead
from analysis.sanitize.rules.base import Rule
from analysis.sanitize.rules.contents import (
    ArrivedWrites,
    FiniteContents,
    UnwrittenBytes,
    WholeCopies,
    WrittenAfterFree,
)
from analysis.sanitize.rules.liveness import Completed, FlownTokens, OnceExecuted
from analysis.sanitize.rules.locking import CommonLock
from analysis.sanitize.rules.provenance import (
    Inherited,
    OneWriter,
    OwnLength,
    OwnPosition,
    OwnPrefix,
    OwnTokens,
    WithinContext,
)
from analysis.sanitize.rules.references import Protected, References, Unreferenced
from analysis.sanitize.rules.rest import AtRest, Watched
from analysis.sanitize.rules.results import OneAnswer, OwnResult, OwnToken, WholeAnswer
from analysis.sanitize.rules.tables import BlockTable, SharedPages, TablePadding
from analysis.sanitize.rules.trie import CachedPrefix, Leaves, Parents, Reachable

RULES: tuple[type[Rule], ...] = (
    OwnTokens, OwnPosition, OwnLength, WithinContext, OneWriter, OwnPrefix, Inherited,
    BlockTable, TablePadding, SharedPages, CachedPrefix,
    OneState, Leak, PaddingPage, AllocationLists, References, Unreferenced, Protected,
    Leaves, Reachable, Parents,
    Completed, FlownTokens, OnceExecuted, AtRest, Watched, CommonLock,
    FiniteContents, WholeCopies, WrittenAfterFree, UnwrittenBytes, ArrivedWrites,
    OwnResult, OwnToken, WholeAnswer, OneAnswer, ArgumentsAsFilled, LandedBeforeRead,
)  # fmt: skip

__all__ = ["RULES", "Rule"]
