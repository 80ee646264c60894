"""Computes the state of the cache from a snapshot and the events after it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from analysis.snapshots.snapshot import CacheState, Node, Snapshot
from analysis.snapshots.trie import Trie

if TYPE_CHECKING:
    import pandas as pd

REPLAYED = frozenset(
    ["acquire", "free", "pages_held", "pages_dropped", "duplicate", "quarantined", "create",
     "node_overwritten", "unlink", "reference", "leaf_added", "leaf_removed"]
)  # fmt: skip
"""Event kinds that change the state of the cache."""


class Replay:
    """Replays events from a snapshot on.

    If the result equals later snapshots, the recording is complete: it has all changes of pages and
    nodes, in a possible order.
    """

    def __init__(self, first: Snapshot) -> None:
        self.page_count = first.page_count
        self.seq = first.seq if first.seq is not None else -1
        """`seq` of the last applied event."""
        self.free = set(first.state.free)
        self.held = {request: set(pages) for request, pages in first.state.holdings.items()}
        self.duplicates = set(first.state.duplicates)
        self.nodes = {node.node: node for node in first.nodes}
        self.references = {node.node: node.ref_count for node in first.nodes}
        """Reference count of every node, as counted by the engine."""
        self.leaves = {node.node for node in first.nodes if node.leaf}
        """Nodes in the engine's set of leaves."""

    def apply(self, events: pd.DataFrame, until: int | None = None) -> Replay:
        """Apply the events that are not yet applied, up to the `seq` `until` or the end."""
        wanted = events[(events["seq"] > self.seq) & events["kind"].isin(REPLAYED)]
        if until is not None:
            wanted = wanted[wanted["seq"] <= until]
            self.seq = max(self.seq, until)
        columns = ["seq", "kind", "request_id", "pages", "node", "parent", "ref_count", "tokens"]
        for event in wanted.sort_values("seq")[columns].itertuples(index=False):
            self._one(event)
            self.seq = max(self.seq, int(event.seq))  # type: ignore[arg-type]
        return self

    def _one(self, event: Any) -> None:
        pages = event.pages if isinstance(event.pages, tuple) else ()
        match event.kind:
            case "acquire":
                self.free.difference_update(pages)
                self.duplicates.difference_update(pages)
            case "free":
                self.free.update(pages)
                self.duplicates.difference_update(pages)
            case "pages_held":
                self.held.setdefault(event.request_id, set()).update(pages)
            case "pages_dropped":
                held = self.held.get(event.request_id, set())
                held.difference_update(pages)
                if not held:
                    self.held.pop(event.request_id, None)
            case "duplicate" | "quarantined":
                self.duplicates.update(pages)
            case "create":
                tokens = tuple(event.tokens)
                number = int(event.node)
                self.nodes[number] = Node(number, int(event.parent), pages[0], tokens, 0, False)
            case "node_overwritten" | "unlink":
                self.nodes.pop(int(event.node), None)
                self._forget_count(int(event.node))
            case "reference":
                self.references[int(event.node)] = int(event.ref_count)
                self._forget_count(int(event.node))
            case "leaf_added":
                self.leaves.add(int(event.node))
            case "leaf_removed":
                self.leaves.discard(int(event.node))

    def _forget_count(self, node: int) -> None:
        """Delete the count of a removed node, unless it still has references."""
        if node not in self.nodes and not self.references.get(node):
            self.references.pop(node, None)

    def cached(self) -> set[int]:
        """Return the pages in the prefix cache, held by requests or not."""
        return self.duplicates | {n.page for n in self._reachable() if n.page is not None}

    def snapshot(self) -> Snapshot:
        """Return the computed cache; its free list is sorted."""
        counts, leaves = self.references, self.leaves
        nodes = tuple(
            Node(n.node, n.parent, n.page, n.tokens, counts.get(n.node, 0), n.node in leaves)
            for n in self._reachable()
        )
        state = CacheState(
            page_count=self.page_count,
            free=sorted(self.free),
            holdings={request: sorted(pages) for request, pages in self.held.items()},
            nodes=nodes,
            duplicates=sorted(self.duplicates),
        )
        return Snapshot(state, moment="asked", seq=self.seq)

    def _reachable(self) -> Iterator[Node]:
        """Return the nodes that can be reached from the root, parents first."""
        return Trie(self.nodes.values()).reachable()


class _Tracked(Replay):
    """A replay from an empty cache that tracks the state of each page after each event.

    Its cost depends on the changes of an event, not on the size of the trie.
    """

    def __init__(self) -> None:
        super().__init__(Snapshot(CacheState(0, (), {}, (Node(0, None, None, (), 0, False),))))
        self.filed: Counter[int] = Counter()
        """Number of reachable nodes with each page."""
        self.holders: Counter[int] = Counter()
        """Number of requests that hold each page."""
        self.moved: set[int] = set()
        """Pages of nodes that became reachable or unreachable in the last event."""
        self._reached = {0}
        self._children: dict[int, set[int]] = {}

    def _one(self, event: Any) -> None:
        self.moved = set()
        match event.kind:
            case "pages_held" | "pages_dropped":
                before = set(self.held.get(event.request_id, ()))
                super()._one(event)
                after = self.held.get(event.request_id, set())
                self.holders.update(after - before)
                self.holders.subtract(before - after)
            case "create":
                self._forget(int(event.node))
                super()._one(event)
                node = self.nodes[int(event.node)]
                assert node.parent is not None
                self._children.setdefault(node.parent, set()).add(node.node)
                if node.parent in self._reached:
                    self._reach(node.node)
            case "node_overwritten" | "unlink":
                self._forget(int(event.node))
                super()._one(event)
            case _:
                super()._one(event)

    def _forget(self, number: int) -> None:
        """Remove a node from its parent, if it exists."""
        node = self.nodes.get(number)
        if node is not None and node.parent is not None:
            self._children[node.parent].discard(number)
            self._reach(number, -1)

    def _reach(self, number: int, change: int = 1) -> None:
        """Mark a node and its descendants as reachable (1) or unreachable (-1)."""
        waiting = [number]
        while waiting:
            number = waiting.pop()
            if (number in self._reached) == (change > 0):
                continue
            self._reached ^= {number}
            page = self.nodes[number].page
            assert page is not None
            self.filed[page] += change
            self.moved.add(page)
            waiting += self._children.get(number, ())

    def state(self, page: int) -> str:
        """Return *cached* or *leaked*; "" for a page that is neither."""
        if self.filed[page] or page in self.duplicates:
            return "cached"
        return "" if self.holders[page] or page in self.free else "leaked"


def cached_or_leaked(events: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each interval in which a page was cached or leaked.

    Columns: page, state (cached or leaked, as in a snapshot), begin and end (`seq` of events). A
    cached page may also be held by requests. All pages count as free before their first event. A
    page without an owner between two operations counts as leaked only if it still has none when a
    request ends, or after the last event.
    """
    replay = _Tracked()
    ended = sorted(map(int, events.loc[events["kind"] == "done", "seq"]))
    last = int(events["seq"].max()) if len(events) else 0
    now: dict[int, tuple[str, int]] = {}
    rows: list[tuple[int, str, int, int]] = []

    def turn(page: int, state: str, seq: int) -> None:
        was, begin = now.get(page, ("", 0))
        if was == state:
            return
        now[page] = (state, seq)
        if was == "leaked" and seq <= last:
            was = was if bisect_left(ended, begin) < bisect_left(ended, seq) else ""
        if was:
            rows.append((page, was, begin, min(seq, last)))

    changes = events[events["kind"].isin(REPLAYED)].sort_values("seq")
    columns = ["seq", "kind", "request_id", "pages", "node", "parent", "ref_count", "tokens"]
    for event in changes[columns].itertuples(index=False):
        pages: Any = event.pages if isinstance(event.pages, tuple) else ()
        if event.kind == "pages_held" or event.kind == "create":
            replay.free.difference_update(pages)  # for a recording that began later
        replay._one(event)
        for page in replay.moved.union(pages):
            turn(page, replay.state(page), int(event.seq))  # type: ignore[arg-type]
    for page in now:
        turn(page, "-", last + 1)
    import pandas as pd

    return pd.DataFrame(rows, columns=["page", "state", "begin", "end"])


def differences(replayed: Snapshot, seen: Snapshot) -> list[str]:
    """Return the differences of two snapshots of the same moment in words; [] if equal.

    `replayed` comes from a replay, `seen` was read from the engine. Orders are ignored.
    """
    found = []
    pages = [p for p in range(seen.page_count) if replayed.states[p] != seen.states[p]]
    if pages:
        states = replayed.states[pages], seen.states[pages]
        found.append(f"pages {pages}: {states[0]} in the replay, {states[1]} in the engine")
    holders, held = ({page: set(r) for page, r in s.holders.items()} for s in (replayed, seen))
    if holders != held:
        found.append(f"holders: {holders} in the replay, {held} in the engine")
    if set(replayed.state.duplicates) != set(seen.state.duplicates):
        found.append(f"duplicates: {replayed.state.duplicates} and {seen.state.duplicates}")
    ours, others = ({node.node: node for node in s.nodes} for s in (replayed, seen))
    for number in sorted(set(ours) | set(others)):
        if ours.get(number) != others.get(number):
            found.append(f"node {number}: {ours.get(number)} and {others.get(number)}")
    return found
