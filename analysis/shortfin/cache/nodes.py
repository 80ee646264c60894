"""Numbers of the trie's live nodes."""

from __future__ import annotations

import itertools
import weakref
from typing import Any


class NodeNumbers:
    """Gives every node of a trie a number for its lifetime; 0 is the root."""

    def __init__(self) -> None:
        self._next = itertools.count()
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._of_counts: dict[int, weakref.ref[Any]] = {}

    def of(self, node: Any) -> int:
        """Return the number of a node; a new node gets a new number."""
        number = self._numbers.get(node)
        if number is None:
            number = self._numbers.setdefault(node, next(self._next))
            # An id is reused only after its node was deleted, which also deletes this entry.
            key, counts = id(node.ref_count), self._of_counts
            counts[key] = weakref.ref(node, lambda gone: _drop(counts, key, gone))
        return number

    def knows(self, node: Any) -> bool:
        """Return whether a node has a number, that is, belongs to this engine."""
        return node in self._numbers

    def counted_by(self, ref_count: Any) -> Any | None:
        """Return the node of a reference count; None if it belongs to another engine."""
        reference = self._of_counts.get(id(ref_count))
        node = reference() if reference is not None else None
        return node if node is not None and node.ref_count is ref_count else None


def _drop(counts: dict[int, weakref.ref[Any]], key: int, gone: weakref.ref[Any]) -> None:
    if counts.get(key) is gone:
        counts.pop(key, None)
