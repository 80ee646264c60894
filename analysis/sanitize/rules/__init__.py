"""The rules that must always hold, one class each.

A rule states its sentence and yields a Finding wherever it is broken. It is asked at what it has a
method for: `on_<kind>(world, event)` before the world takes note of an event of that kind,
`after_<kind>(world, event)` afterwards, `flight(world, passage)` when a flight has gone through the
shadow, `rest(world, snapshot)` when no request is under way, `finish(world)` at the very end. To
add one, write it into a module here and put it into RULES.
"""

from __future__ import annotations

from analysis.sanitize.rules.accounting import Leak, OneState, PaddingPage
from analysis.sanitize.rules.base import Rule
from analysis.sanitize.rules.contents import FiniteContents, WholeCopies, WrittenAfterFree
from analysis.sanitize.rules.liveness import Completed, FlownTokens, OnceExecuted
from analysis.sanitize.rules.locking import CommonLock
from analysis.sanitize.rules.provenance import (
    Inherited,
    OneWriter,
    OwnLength,
    OwnPosition,
    OwnPrefix,
    OwnTokens,
)
from analysis.sanitize.rules.references import References, Unreferenced
from analysis.sanitize.rules.rest import AtRest, Watched
from analysis.sanitize.rules.tables import BlockTable, SharedPages
from analysis.sanitize.rules.trie import CachedPrefix, Leaves, Reachable

RULES: tuple[type[Rule], ...] = (
    OwnTokens, OwnPosition, OwnLength, OneWriter, OwnPrefix, Inherited,
    BlockTable, SharedPages, CachedPrefix,
    OneState, Leak, PaddingPage, References, Unreferenced, Leaves, Reachable,
    Completed, FlownTokens, OnceExecuted, AtRest, Watched, CommonLock,
    FiniteContents, WholeCopies, WrittenAfterFree,
)  # fmt: skip

__all__ = ["RULES", "Rule"]
