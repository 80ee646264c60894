"""Rule about locks: state that several threads change needs one common lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.rules.base import Rule, each
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.trace import Event

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
"""The part of the cache that an event changes: one finding a part, not one a node or page."""


class LocksetViolation(Rule):
    """The lockset method of Eraser (Savage et al., 1997), for each operation.

    For each part of the cache, it keeps the set of locks held at every change since a second
    thread changed it. If the set becomes empty, two threads can change the part at the same time.
    """

    name = "lockset-violation"
    sentence = "Threads that change the same state hold a common lock."
    causes = each(
        "free-list trie leaf-set ref-counts pending-free",
        "Two threads can change it at the same time, and a change can be lost.",
    )
    tolerates_gaps = True

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, dict[str | None, Event]] = {}
        self._common: dict[str, frozenset[str]] = {}

    def _change(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if event.locks is None:
            return  # not recorded, or a treatment's change under its own lock
        part, locks = _STATE[event.kind], frozenset(event.locks)
        last = self._last.setdefault(part, {})
        others = [e for thread, e in last.items() if thread != event.thread]
        last[event.thread] = event
        if not others:
            return
        common = self._common.get(part)
        # Earlier changes by a single thread need no lock: only its last one counts.
        common = frozenset(others[-1].locks or ()) if common is None else common
        self._common[part] = common = common & locks
        if common or not self.is_new(part, event.operation):
            return
        other = next((e for e in reversed(others) if not (locks & frozenset(e.locks or ()))), None)
        if other is None:
            return
        what = (
            f"Two threads change the {part.replace('-', ' ')} without a common lock:"
            f" {event.operation or event.kind} on thread {event.thread} holds {_named(locks)},"
            f" {other.operation or other.kind} on thread {other.thread} holds"
            f" {_named(other.locks or ())}."
        )
        page, stack = event.pages[0] if event.pages else None, other.stack
        yield Finding(part, what, event.request_id, other.request_id, page=page, other_stack=stack)

    on_acquire = on_free = on_create = on_node_overwritten = on_unlink = _change
    on_leaf_added = on_leaf_removed = on_reference = on_duplicate = _change


def _named(locks: Iterable[str]) -> str:
    names = sorted(locks)
    return f"the lock of the {' and the '.join(names)}" if names else "no lock"
