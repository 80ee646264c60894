"""The difference of two snapshots of the cache, and its description in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from analysis.core.errors import CachelabError
from analysis.core.wording import capitalised, counted, listed, ranges, short_names
from analysis.snapshots.state import STATES, Conflict, Node, SnapshotBase

_MOST_PARTS = 8
S = TypeVar("S", bound=SnapshotBase)


class SnapshotError(CachelabError, ValueError):
    """Snapshots cannot be compared or drawn as asked."""


@dataclass(frozen=True, eq=False, repr=False)
class Diff(Generic[S]):
    """The difference between two snapshots; `str(change)` describes it in sentences.

    False if nothing changed. Nodes are identified by number, so both snapshots must be of the same
    engine.
    """

    before: S
    after: S
    moved: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    """Pages by (old state, new state)."""
    gained: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Pages that each request newly holds."""
    lost: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Pages that each request no longer holds."""
    created: tuple[Node, ...] = ()
    """New nodes of the trie."""
    gone: tuple[Node, ...] = ()
    """Removed nodes of the trie, in their old state."""
    altered: tuple[tuple[Node, Node], ...] = ()
    """Nodes with another page, other tokens or another parent, as (old, new)."""
    references: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Changed reference counts (old, new) of nodes in both snapshots."""
    leaves_gained: tuple[int, ...] = ()
    """Nodes added to the engine's set of leaves, including new nodes."""
    leaves_lost: tuple[int, ...] = ()
    """Nodes removed from the set of leaves, including removed nodes."""
    duplicates_gained: tuple[int, ...] = ()
    """Duplicate pages newly listed to be freed."""
    duplicates_lost: tuple[int, ...] = ()
    rewritten: tuple[int, ...] = ()
    """Pages with changed contents, if both snapshots have the contents."""
    conflicts: tuple[Conflict, ...] = ()
    """New conflicts."""

    @property
    def leaked(self) -> tuple[int, ...]:
        """Pages that leaked, in ascending order."""
        ways = self.moved.items()
        return _sorted(page for (_, new), pages in ways if new == "leaked" for page in pages)

    @property
    def changed_pages(self) -> tuple[int, ...]:
        """Pages with another state, other holders, another node or other contents."""
        nodes = [*self.created, *self.gone, *(node for pair in self.altered for node in pair)]
        groups = [
            *self.moved.values(),
            *self.gained.values(),
            *self.lost.values(),
            tuple(node.page for node in nodes if node.page is not None),
            self.duplicates_gained,
            self.duplicates_lost,
            self.rewritten,
        ]
        return _sorted({page for pages in groups for page in pages})

    def sentences(self) -> list[str]:
        """Return the changes, one sentence each; [] if nothing changed."""
        return _Sentences(self).all()

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self)[2:])

    def __str__(self) -> str:
        return " ".join(self.sentences()) or "Nothing changed."

    def __repr__(self) -> str:
        return f"<Diff: {self}>"


def diff(before: S, after: S) -> Diff[S]:
    """Return the difference of two snapshots, like `after - before`.

    Raises SnapshotError if the pools have different sizes.
    """
    same_pool(before, after)
    old = {node.node: node for node in before.nodes}
    new = {node.node: node for node in after.nodes}
    both = [(node, new[node.node]) for node in before.nodes if node.node in new]
    old_leaves = {node.node for node in before.nodes if node.leaf}
    new_leaves = {node.node for node in after.nodes if node.leaf}
    old_aside, new_aside = set(before.state.duplicates), set(after.state.duplicates)
    known = set(before.conflicts)
    return Diff(
        before=before,
        after=after,
        moved=_moved(before.states, after.states),
        gained=_more(before.state.holdings, after.state.holdings),
        lost=_more(after.state.holdings, before.state.holdings),
        created=tuple(node for node in after.nodes if node.node not in old),
        gone=tuple(node for node in before.nodes if node.node not in new),
        altered=tuple((a, b) for a, b in both if _identity(a) != _identity(b)),
        references={
            a.node: (a.ref_count, b.ref_count) for a, b in both if a.ref_count != b.ref_count
        },
        leaves_gained=_sorted(new_leaves - old_leaves),
        leaves_lost=_sorted(old_leaves - new_leaves),
        duplicates_gained=_sorted(new_aside - old_aside),
        duplicates_lost=_sorted(old_aside - new_aside),
        rewritten=_sorted(
            page
            for page, content in after.contents.items()
            if page in before.contents and before.contents[page].digest != content.digest
        ),
        conflicts=tuple(conflict for conflict in after.conflicts if conflict not in known),
    )


def same_pool(before: SnapshotBase, after: SnapshotBase) -> None:
    """Raise SnapshotError unless both snapshots are of pools of the same size."""
    if before.page_count != after.page_count:
        raise SnapshotError(
            f"These snapshots are of pools of different sizes, {before.page_count} and "
            f"{after.page_count} pages, and cannot be compared."
        )


class _Sentences:
    """Describes a difference in sentences."""

    def __init__(self, change: Diff[Any]) -> None:
        self.change = change
        self.before, self.after = change.before, change.after
        self.names = short_names([*self.before.state.holdings, *self.after.state.holdings])

    def all(self) -> list[str]:
        if not self.change:
            return []
        return [
            *self._pages(),
            *self._holdings(),
            *self._trie(),
            *self._other(),
            *self._counts(),
            *self._leaks(),
            *self._warnings(),
        ]

    def _pages(self) -> list[str]:
        """Return the changes of page states, except leaks."""
        now, then = self.after.holders, self.before.holders
        ways = [
            ("free", "live", "was taken from the pool", "were taken from the pool", now, "held by"),
            ("free", "cached", "went from the pool into the prefix cache", "", None, ""),
            ("cached", "live", "of the prefix cache is in use again",
             "of the prefix cache are in use again", now, "held by"),
            ("live", "cached", "is left to the prefix cache", "are left to the prefix cache", then,
             "given up by"),
            ("live", "free", "went back to the pool", "", then, "given up by"),
            ("cached", "free", "went from the prefix cache back to the pool", "", None, ""),
            ("leaked", "free", "that had leaked went back to the pool", "", None, ""),
            ("leaked", "live", "that had leaked is in use again",
             "that had leaked are in use again", now, "held by"),
            ("leaked", "cached", "that had leaked is in the prefix cache again",
             "that had leaked are in the prefix cache again", None, ""),
        ]  # fmt: skip
        found = []
        for old, new, one, many, holders, verb in ways:
            if pages := self.change.moved.get((old, new)):
                words = many if many and len(pages) > 1 else one
                where = self._by_holder(pages, holders, verb) if holders else ranges(pages)
                found.append(f"{counted(len(pages), 'page')} {words}: {where}.")
        return found

    def _holdings(self) -> list[str]:
        """Return the changed holders of pages that stayed in the same state."""
        moved = {page for pages in self.change.moved.values() for page in pages}
        found = []
        ways = (
            (self.change.gained, "came to hold", self.before.holders, "shared with"),
            (self.change.lost, "gave up", self.after.holders, "still held by"),
        )
        for requests, verb, others, relation in ways:
            lines = [
                (request, kept)
                for request, pages in requests.items()
                if (kept := [page for page in pages if page not in moved])
            ]
            for request, pages in lines[:_MOST_PARTS]:
                rest = {page: tuple(h for h in others.get(page, ()) if h != request)
                        for page in pages}  # fmt: skip
                where = self._by_holder(pages, rest, relation)
                number = counted(len(pages), "page")
                found.append(f"{self.names[request]} {verb} {number}: {where}.")
            if len(lines) > _MOST_PARTS:
                found.append(f"{len(lines) - _MOST_PARTS} more requests {verb} such pages.")
        return found

    def _trie(self) -> list[str]:
        change, found = self.change, []
        for nodes, one, many in (
            (change.created, "is new in the trie", "are new in the trie"),
            (change.gone, "is gone from the trie", "are gone from the trie"),
        ):
            if nodes:
                verb = one if len(nodes) == 1 else many
                pages = [node.page for node in nodes if node.page is not None]
                on = f" ({_numbers('page', pages)})" if pages else ""
                number = counted(len(nodes), "node")
                found.append(f"{number} {verb}: {ranges(node.node for node in nodes)}{on}.")
        if change.altered:
            parts = [f"node {a.node}{_altered(a, b)}" for a, b in change.altered]
            found.append(f"Nodes changed: {listed(parts, most=_MOST_PARTS)}.")
        if change.references:
            parts = [f"node {n} {a} -> {b}" for n, (a, b) in change.references.items()]
            found.append(f"References: {listed(parts, most=_MOST_PARTS)}.")
        found += [
            f"{words}: {_numbers('node', nodes)}."
            for words, nodes in (
                ("Became leaves", change.leaves_gained),
                ("No longer leaves", change.leaves_lost),
            )
            if nodes
        ]
        return found

    def _other(self) -> list[str]:
        ways = (
            (self.change.duplicates_gained, "duplicate page", "was", "were",
             "listed to be freed"),
            (self.change.duplicates_lost, "duplicate page", "is", "are",
             "no longer listed to be freed"),
            (self.change.rewritten, "page", "holds", "hold", "other contents"),
        )  # fmt: skip
        return [
            f"{counted(len(pages), noun)} {one if len(pages) == 1 else many} {what}:"
            f" {ranges(pages)}."
            for pages, noun, one, many, what in ways
            if pages
        ]

    def _counts(self) -> list[str]:
        a, b = self.before.counts, self.after.counts
        used, now = a["live"] + a["cached"], b["live"] + b["cached"]
        parts = [
            f"{name}: {old} -> {new}"
            for name, old, new in (
                ("Pages in use", used, now),
                ("free pages", a["free"], b["free"]),
            )
            if old != new
        ]
        return [f"{capitalised(', '.join(parts))}."] if parts else []

    def _leaks(self) -> list[str]:
        """Return which pages leaked, with their last holders or states."""
        pages = self.change.leaked
        if not pages:
            return []
        then = self.before.holders
        held = tuple(page for page in pages if page in then)
        if len(held) == len(pages):
            where = self._by_holder(pages, then, "last held by")
        else:
            moved = self.change.moved
            groups = (
                ("held by requests", moved.get(("live", "leaked"), ())),
                ("in the pool", moved.get(("free", "leaked"), ())),
                ("cached", moved.get(("cached", "leaked"), ())),
            )
            parts = [f"{ranges(group)} ({words} before)" for words, group in groups if group]
            where = listed(parts)
        total = self.after.counts["leaked"]
        tail = f", {total} in all" if total > len(pages) else ""
        return [f"{counted(len(pages), 'page')} leaked: {where}{tail}."]

    def _warnings(self) -> list[str]:
        found = []
        if conflicts := self.change.conflicts:
            more = len(conflicts) - _MOST_PARTS
            found += [f"Conflict: {conflict}" for conflict in conflicts[:_MOST_PARTS]]
            found += [f"And {more} more conflicts."] if more > 0 else []
        if not (self.before.consistent and self.after.consistent):
            which = [
                name
                for name, taken in (("first", self.before), ("second", self.after))
                if not taken.consistent
            ]
            found.append(
                f"The {listed(which)} snapshot was taken during an operation of the cache."
            )
        return found

    def _named(self, requests: Iterable[str]) -> str:
        return listed((self.names[request] for request in requests), most=4)

    def _by_holder(
        self, pages: Iterable[int], holders: Mapping[int, Sequence[str]], verb: str
    ) -> str:
        """Return pages as ranges, grouped by their holders."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for page in pages:
            groups.setdefault(tuple(holders.get(page, ())), []).append(page)
        parts = [
            ranges(group) + (f" {verb} {self._named(owners)}" if owners else "")
            for owners, group in list(groups.items())[:_MOST_PARTS]
        ]
        if len(parts) == 1:
            return parts[0].replace(f" {verb}", f", {verb}", 1)
        more = sum(len(group) for group in list(groups.values())[_MOST_PARTS:])
        return "; ".join(parts) + (f"; and {more} more" if more else "")


def _moved(
    old: npt.NDArray[np.uint8], new: npt.NDArray[np.uint8]
) -> dict[tuple[str, str], tuple[int, ...]]:
    changed = np.flatnonzero(old != new)
    ways = old[changed].astype(int) * len(STATES) + new[changed]
    return {
        (STATES[way // len(STATES)], STATES[way % len(STATES)]): tuple(
            changed[ways == way].tolist()
        )
        for way in np.unique(ways).tolist()
    }


def _more(
    less: Mapping[str, Sequence[int]], more: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    found = {r: _sorted(set(pages) - set(less.get(r, ()))) for r, pages in more.items()}
    return {request: pages for request, pages in found.items() if pages}


def _identity(node: Node) -> tuple[object, ...]:
    return node.parent, node.page, node.tokens


def _altered(a: Node, b: Node) -> str:
    words = [
        f" {name} {old} -> {new}"
        for name, old, new in (("page", a.page, b.page), ("parent", a.parent, b.parent))
        if old != new
    ]
    return "".join([*words, " other tokens" if a.tokens != b.tokens else ""])


def _numbers(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun if len(numbers) == 1 else noun + 's'} {ranges(numbers)}"


def _sorted(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers))
