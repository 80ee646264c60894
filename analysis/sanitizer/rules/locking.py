"""Whether state that several threads change is guarded by one lock."""

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
"""The state that an event changes. Per node or page there would be many findings for one defect."""


class LocksetViolation(Rule):
    """The lockset method of Eraser (Savage et al., 1997), for each operation.

    For each part of the cache, the locks that were held at every change since a second thread
    changed it; if none is left, the threads can change it at once.
    """

    name = "lockset-violation"
    sentence = "State that several threads change is changed under one common lock."
    causes = each(
        "free-list trie leaf-set ref-counts pending-free",
        "Two threads can change it at once, so a change can be lost.",
    )
    tolerates_gaps = True

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, dict[str | None, Event]] = {}
        self._common: dict[str, frozenset[str]] = {}

    def _change(self, state: EngineState, event: Event) -> Iterator[Finding]:
        if event.locks is None:
            return  # not recorded, or a treatment's own change under a lock of its own
        part, locks = _STATE[event.kind], frozenset(event.locks)
        last = self._last.setdefault(part, {})
        others = [e for thread, e in last.items() if thread != event.thread]
        last[event.thread] = event
        if not others:
            return
        common = self._common.get(part)
        # The first thread's changes count from its last one on: alone it was in no danger.
        common = frozenset(others[-1].locks or ()) if common is None else common
        self._common[part] = common = common & locks
        if common or not self.is_new(part, event.operation):
            return
        other = next((e for e in reversed(others) if not (locks & frozenset(e.locks or ()))), None)
        if other is None:
            return
        what = (
            f"The operation {event.operation or event.kind} on thread {event.thread} changes the"
            f" {part.replace('-', ' ')} under {_named(locks)}, and"
            f" {other.operation or other.kind} on thread {other.thread} under"
            f" {_named(other.locks or ())}."
        )
        page, stack = event.pages[0] if event.pages else None, other.stack
        yield Finding(part, what, event.request_id, other.request_id, page=page, other_stack=stack)

    on_acquire = on_free = on_create = on_node_overwritten = on_unlink = _change
    on_leaf_added = on_leaf_removed = on_reference = on_duplicate = _change


def _named(locks: Iterable[str]) -> str:
    names = sorted(locks)
    return f"the lock of the {' and the '.join(names)}" if names else "no lock"
