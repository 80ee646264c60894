"""The cache while nobody is served."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.recording.replay import differences
from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.world import World
from analysis.snapshots.snapshot import Snapshot

_SHOWN = 8


class AtRest(Rule):
    """When nobody is served the pool is back where it began."""

    name = "not-quiescent"
    sentence = "With nobody served every page is free or cached, and no node is referred to."

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._referred: set[int] = set()

    def rest(self, world: World, snapshot: Snapshot) -> Iterator[Finding]:
        lost = [*snapshot.pages("leaked"), *snapshot.pages("live")]
        new = [page for page in lost if page not in self._told]
        if new:
            self._told.update(new)
            counts = snapshot.counts
            yield Finding(
                cause="missing-pages",
                message=f"With nobody served, {counts['free']} pages are free and"
                f" {counts['cached']} cached of {snapshot.page_count}: {_listed(lost)}"
                f" {'is' if len(lost) == 1 else 'are'} missing.",
                page=new[0],
            )
        self._referred.intersection_update(node.node for node in snapshot.nodes)
        for node in snapshot.nodes:
            if node.ref_count > 0 and node.parent is not None and node.node not in self._referred:
                self._referred.add(node.node)
                yield Finding(
                    cause="references",
                    message=f"With nobody served, node {node.node} (page {node.page}) has"
                    f" {node.ref_count} references.",
                    page=node.page,
                )


class Watched(Rule):
    """The cache is where its operations brought it."""

    name = "state-divergence"
    sentence = "The cache is as its operations left it, and nothing is in two places."

    def rest(self, world: World, snapshot: Snapshot) -> Iterator[Finding]:
        page = next(iter(snapshot.conflict_pages), None)
        for conflict in snapshot.conflicts:
            cause = "wrong-key" if conflict.code == "wrong-key" else "two-states"
            yield Finding(cause=cause, message=str(conflict), page=page)
        told = world.snapshot()
        if told.counts == snapshot.counts and len(told.nodes) == len(snapshot.nodes):
            return
        for sentence in differences(told, snapshot)[:3]:
            yield Finding(
                cause="untracked-change",
                message=f"The cache is not as its operations left it: {sentence}.",
            )


def _listed(pages: list[int]) -> str:
    shown = ", ".join(map(str, sorted(pages)[:_SHOWN]))
    more = len(pages) - _SHOWN
    return f"page{'s' if len(pages) > 1 else ''} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )
