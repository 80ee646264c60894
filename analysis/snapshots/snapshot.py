"""The KV cache at one moment, and its row of the table `snapshots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.core.errors import RunError
from analysis.core.wording import counted, plain, short_names
from analysis.snapshots.diff import Diff, diff
from analysis.snapshots.state import (
    CACHED,
    CONFLICTS,
    FREE,
    LEAKED,
    LIVE,
    STATES,
    CacheState,
    Conflict,
    Node,
    PageContent,
    SnapshotBase,
)

__all__ = [
    "CACHED",
    "CONFLICTS",
    "FREE",
    "LEAKED",
    "LIVE",
    "STATES",
    "CacheState",
    "Conflict",
    "Node",
    "PageContent",
    "Snapshot",
    "describe",
    "moment_of",
]

_LETTERS = np.frombuffer(b"flcx", dtype=np.uint8)


class Snapshot(SnapshotBase):
    """The cache at one moment. `after - before` is the `Diff` between two of them."""

    def __sub__(self, before: object) -> Diff[Snapshot]:
        """Return what changed from `before` to this snapshot.

        Raises SnapshotError if the two are of pools of different sizes.
        """
        return diff(before, self) if isinstance(before, Snapshot) else NotImplemented

    def __str__(self) -> str:
        return describe(self)

    def __repr__(self) -> str:
        return f"<Snapshot: {self}>"

    def to_row(self, trial_id: str = "") -> dict[str, Any]:
        """Return its row of the table `snapshots`, which has no page contents."""
        leaves = sum(n.leaf for n in self.nodes)
        return {
            "request_id": self.request_id,
            "trial_id": trial_id,
            "moment": self.moment,
            "seq": self.seq,
            "t_s": self.t_s,
            "page_count": self.page_count,
            **self.counts,
            "nodes": max(0, len(self.nodes) - 1),
            "leaves": leaves,
            "consistent": self.consistent,
            "states": _LETTERS[self.states].tobytes().decode(),
            "holders": [{"request_id": k, "pages": v} for k, v in self.state.holdings.items()],
            "trie": [(n.node, n.parent, n.page, n.tokens, n.ref_count, n.leaf) for n in self.nodes],
            "duplicates": list(self.state.duplicates),
            "misplaced": [list(each) for each in self.state.misplaced],
            "allocated": None if self.state.allocated is None else list(self.state.allocated),
            "conflicts": [conflict._asdict() for conflict in self.conflicts],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot of a row of the table `snapshots`; its free list is sorted.

        Raises RunError for an invalid row.
        """
        try:
            return cls._from_row(row)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise RunError(
                f"The snapshot at event {row.get('seq')} of trial {row.get('trial_id')} cannot be"
                f" read ({error}). Restore the run, or record it again."
            ) from error

    @classmethod
    def _from_row(cls, row: Mapping[str, Any]) -> Snapshot:
        import pandas as pd  # slow to import, and not needed in trials

        states = np.frombuffer(row["states"].encode(), dtype=np.uint8)
        nodes = tuple(Node(**{**node, "tokens": tuple(node["tokens"])}) for node in row["trie"])
        conflicts = tuple(
            Conflict(**{**found, "request_ids": tuple(found["request_ids"] or ())})
            for found in row["conflicts"] or ()
        )
        state = CacheState(
            page_count=len(states),
            free=[int(page) for page in np.flatnonzero(states == _LETTERS[FREE])],
            holdings={holder["request_id"]: list(holder["pages"]) for holder in row["holders"]},
            nodes=nodes,
            duplicates=tuple(row["duplicates"] or ()),
            misplaced=tuple(tuple(each) for each in row.get("misplaced") or ()),
            allocated=row.get("allocated"),
        )
        return cls(
            state=state,
            moment=row["moment"],
            request_id=None if pd.isna(row["request_id"]) else row["request_id"],
            seq=None if pd.isna(row["seq"]) else int(row["seq"]),
            t_s=None if pd.isna(row["t_s"]) else float(row["t_s"]),
            consistent=bool(row["consistent"]),
            recorded_conflicts=conflicts,
        )


def describe(snapshot: Snapshot) -> str:
    """Return a snapshot in one to three sentences."""
    counts = snapshot.counts
    holding = sum(bool(pages) for pages in snapshot.state.holdings.values())
    by = f" (held by {counted(holding, 'request')})" if counts["live"] else ""
    text = (
        f"{counted(snapshot.page_count, 'page')}: {counts['free']} free, {counts['live']} live"
        f"{by}, {counts['cached']} cached, {counts['leaked']} leaked"
    )
    if snapshot.nodes:
        leaves = sum(node.leaf for node in snapshot.nodes)
        text += f"; {counted(len(snapshot.nodes) - 1, 'node')} in the trie, {leaves} as leaves"
    text += "."
    if not snapshot.consistent:
        text += " It was taken during an operation of the cache, so it may be inconsistent."
    if snapshot.conflicts:
        named = " ".join(map(str, snapshot.conflicts[:2]))
        more = len(snapshot.conflicts) - 2
        text += f" In conflict: {named}" + (f" And {more} more." if more > 0 else "")
    return text


def moment_of(snapshot: Snapshot) -> str:
    """Return when a snapshot was taken, in words; "" if that is not known."""
    text = snapshot.moment if snapshot.moment in ("before", "after", "failure") else ""
    if snapshot.request_id is not None:
        [name] = short_names([snapshot.request_id]).values()
        text = f"{text or 'at'} request {plain(name, 24)}".replace("failure", "failure of")
    elif snapshot.moment == "failure":
        text = "at a failure"
    parts = [text, "" if snapshot.t_s is None else f"at {snapshot.t_s:.3f} s"]
    return ", ".join(part for part in parts if part)
