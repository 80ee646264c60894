"""Whether what several threads change is guarded by one lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.world import Event, World

_STATE = {
    "acquire": "free-list",
    "free": "free-list",
    "create": "trie",
    "node_overwritten": "trie",
    "unlink": "trie",
    "leaf_added": "leaf-set",
    "leaf_removed": "leaf-set",
    "reference": "ref-counts",
    "duplicate": "pending-free",
}
"""What an event changes. By node or page would be finer, and tell the same story more often."""


class CommonLock(Rule):
    """The lockset method of Eraser (Savage et al., 1997), operation by operation.

    For each part of the cache the locks that were held at every change since a second thread
    changed it; when none is left, nothing kept the two from changing it at once.
    """

    name = "lockset-violation"
    sentence = "What several threads change is changed under one common lock."
    bears_gaps = True

    def __init__(self) -> None:
        self._last: dict[str, dict[str | None, Event]] = {}
        self._common: dict[str, frozenset[str]] = {}
        self._told: set[tuple[str, str | None]] = set()

    def _change(self, world: World, event: Event) -> Iterator[Finding]:
        if event.locks is None:
            return  # recorded without, or what a treatment does under a lock of its own
        part, locks = _STATE[event.kind], frozenset(event.locks)
        last = self._last.setdefault(part, {})
        others = [e for thread, e in last.items() if thread != event.thread]
        last[event.thread] = event
        if not others:
            return
        common = self._common.get(part)
        # The first thread's changes count from its last one on: what it did alone was no danger.
        common = frozenset(others[-1].locks or ()) if common is None else common
        self._common[part] = common = common & locks
        if common or (part, event.operation) in self._told:
            return
        self._told.add((part, event.operation))
        other = next((e for e in reversed(others) if not (locks & frozenset(e.locks or ()))), None)
        if other is None:
            return
        mine, theirs = _named(locks), _named(other.locks or ())
        yield Finding(
            cause=part,
            message=f"The operation {event.operation or event.kind} on thread {event.thread}"
            f" changes the {part.replace('-', ' ')} under {mine}, and"
            f" {other.operation or other.kind} on thread {other.thread} under {theirs}.",
            request_id=event.request_id,
            other_request_id=other.request_id,
            page=event.pages[0] if event.pages else None,
            other_stack=other.stack,
        )

    on_acquire = on_free = on_create = on_node_overwritten = on_unlink = _change
    on_leaf_added = on_leaf_removed = on_reference = on_duplicate = _change


def _named(locks: Iterable[str]) -> str:
    names = sorted(locks)
    return f"the lock of the {' and the '.join(names)}" if names else "no lock"
