"""What a rule is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.world import World
from analysis.snapshots.snapshot import Snapshot


class Rule:
    """A sentence that must always hold; one object of it watches one engine."""

    name: ClassVar[str]
    sentence: ClassVar[str]
    bears_gaps: ClassVar[bool] = False
    """Whether it can be asked although an event of the cache is not known."""

    def invocation(self, world: World, passage: Passage) -> Iterable[Finding]:
        """Check an invocation that has just gone through the shadow."""
        return ()

    def look(self, world: World, snapshot: Snapshot) -> Iterable[Finding]:
        """Check the engine's own cache between two operations, whoever is under way."""
        return ()

    def rest(self, world: World, snapshot: Snapshot) -> Iterable[Finding]:
        """Check the engine's own cache while no request is under way."""
        return ()

    def finish(self, world: World) -> Iterable[Finding]:
        """Check what the stream has come to at its end."""
        return ()
