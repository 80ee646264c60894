"""Cases of rules: the quiescent cache, locks and contents."""

from __future__ import annotations

from rule_cases import A, B, begin, breaks, ready, silent
from trace_builder import ROOT

from analysis.sanitizer.findings import WRONG_DATA
from analysis.snapshots.snapshot import Node


@breaks(
    "not-quiescent",
    "missing-pages",
    request=None,
    page=3,
    also=(("state-divergence", "untracked-change"),),
)
def a_page_that_is_gone_at_rest(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    return story.snapshot(free=[0, 1, 2, 4, 5, 6, 7])


@breaks("not-quiescent", "missing-pages", request=None, page=1)
def pages_of_a_request_that_was_given_up(story):
    ready(story, "a", A, 1, 2)
    story.done("a", "error")
    place = story.snapshot()
    story.snapshot()  # reported once
    return place


@breaks("not-quiescent", "references", request=None, page=1)
def a_reference_left_at_rest(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.drop("a", 1, 2)
    story.free("a", 2)
    story.done("a", "error")
    return story.snapshot()


@breaks(
    "state-divergence",
    "two-states",
    request=None,
    page=1,
    also=(("state-divergence", "untracked-change"),),
)
def a_page_free_and_cached_at_rest(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.end("a")
    return story.snapshot(free=[0, 1, 2, 3, 4, 5, 6, 7])


@breaks("state-divergence", "wrong-key", request=None, page=1)
def a_node_under_another_key(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.end("a")
    return story.snapshot(misfiled=[1])


@breaks("state-divergence", "untracked-change", request=None)
def a_node_that_no_operation_made(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    strange = Node(1, 0, 5, A[:4], 0, True)
    return story.snapshot(nodes=(ROOT, strange), free=[0, 1, 2, 3, 4, 6, 7])


@silent
def a_snapshot_while_somebody_is_served(story):
    begin(story, "a", A, 1, 2)
    story.snapshot(free=[0])
    story.end("a")
    story.snapshot(free=[0], consistent=False)
    story.snapshot()


@breaks("lockset-violation", "free-list", request="b", other="a", page=3)
def two_threads_without_a_common_lock(story):
    story.submit("a", A)
    story.submit("b", B)
    with story.within("acquire", "a"):
        story.acquire("a", 1, locks=("the cache's lock",))
    story.hold("a", 1)
    with story.within("acquire", "b", thread="w1"):
        place = story.acquire("b", 3, locks=("the pool's lock",))
    story.hold("b", 3)
    return place


@breaks("lockset-violation", "free-list", request="b", other="a", page=3)
def two_threads_without_any_lock(story):
    story.submit("a", A)
    story.submit("b", B)
    story.acquire("a", 1, locks=())
    story.hold("a", 1)
    with story.within(thread="w1"):
        place = story.acquire("b", 3, locks=())
    story.hold("b", 3)
    return place


@silent
def one_common_lock_among_several(story):
    story.submit("a", A)
    story.submit("b", B)
    story.acquire("a", 1, locks=())  # alone as yet, and before the one that counts
    story.acquire("a", 2, locks=("cache", "pool"))
    story.hold("a", 1, 2)
    with story.within(thread="w1"):
        story.acquire("b", 3, locks=("pool", "ref-count-mismatch"))
    story.hold("b", 3)


@silent
def locks_that_were_not_recorded(story):
    story.submit("a", A)
    story.submit("b", B)
    story.allocate("a", 1)
    with story.within(thread="w1"):
        story.allocate("b", 3)


@silent
def parts_of_the_cache_with_a_lock_each(story):
    ready(story, "a", A, 1, 2)
    with story.within("publish", "a", thread="w1"):
        story.event("create", "a", (1,), node=1, parent=0, tokens=(11, 12, 13, 14), locks=("trie",))
        story.event("leaf_added", "a", node=1, locks=("trie",))


@breaks("nonfinite-kv", "own-page", page=2, slot=3, severity=WRONG_DATA)
def nan_in_a_requests_page(story):
    ready(story, "a", A, 1, 2)
    return story.event("nonfinite", "a", (2,), value=3)


@breaks("nonfinite-kv", "padding-page", page=0, slot=1, severity=WRONG_DATA)
def nan_in_the_padding_page(story):
    ready(story, "a", A, 1, 2)
    return story.event("nonfinite", "a", (0,), value=1)


@breaks("partial-copy", "missing-slots", page=3, slot=2, severity=WRONG_DATA)
def a_copy_that_lacks_a_slot(story):
    ready(story, "a", A, 1, 2)
    story.allocate("a", 3)
    return story.copy(2, 3, "a", value=2)


@breaks("write-after-free", "quarantined-page", request=None, other="a", page=2)
def a_page_written_in_quarantine(story):
    ready(story, "a", A, 1, 2)
    story.end("a")
    return story.event("written_after_free", None, (2,))
