"""Cases of rules: the trie and its references."""

from __future__ import annotations

from dataclasses import replace

from rule_cases import A, B, begin, breaks, place_of, ready, silent


@breaks("cached-prefix-mismatch", "uninitialized", page=1, slot=0)
def a_page_published_before_it_was_written(story):
    begin(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return place_of(story, "create")


@breaks("cached-prefix-mismatch", "padding", page=2, slot=2)
def a_partial_page_published_as_a_whole(story):
    begin(story, "a", A, 1, 2)
    story.prefill("a")
    story.publish("a", (*A, 17, 18), [1, 2])
    return place_of(story, "create")


@breaks("cached-prefix-mismatch", "other-prefix", other="b", page=3, slot=0)
def anothers_page_published(story):
    ready(story, "b", B, 3, 4)
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [3])
    return place_of(story, "create")


@breaks("cached-prefix-mismatch", "other-prefix", request="b", other="a", page=2, slot=0)
def a_page_served_for_another_prefix(story):
    ready(story, "a", (*A, 17, 18), 1, 2)
    node = story.publish("a", (*A, 17, 18), [1, 2])
    story.submit("b", (*A[:4], *B))
    return story.match("b", 1, 2, node=node)


@silent
def a_partial_page_published_for_what_it_holds(story):
    begin(story, "a", A, 1, 2)
    story.prefill("a")
    story.token("a", 100)
    story.publish("a", A, [1, 2])
    story.reference(2, +1, "a")
    story.decode("a")  # goes on in slots promised to no request
    story.submit("b", A[:4])
    story.match("b", 1, node=1)


@silent
def a_publication_finds_what_it_has_flown(story):
    ready(story, "a", (*A, 7), 1, 2)
    story.decode("a")
    with story.within("publish", "a"):
        story.match("a", 1, 2)
    story.match("unknown", 7)


@breaks("cached-prefix-mismatch", "other-prefix", other="b", page=3, slot=0)
def a_publication_finds_another_prefix(story):
    ready(story, "a", (*A, 7), 1, 2)
    ready(story, "b", B, 3, 4)
    story.decode("a")
    with story.within("publish", "a"):
        return story.match("a", 3, 2)


@breaks("orphaned-node", "overwritten", request="b", other="a", page=1)
def a_node_replaced_by_another(story):
    ready(story, "a", A, 1, 2)
    ready(story, "b", A, 3, 4)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    with story.within("publish", "b"):
        place = story.replace(1, "b")
        story.no_leaf(1, "b")
        story.create("b", 3, A[:4])
        story.leaf(2, "b")
    return place


@silent
def unreferenced_nodes_evicted_from_the_leaves_up(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    node = story.publish("a", tokens, [1, 2])
    story.reference(node, +1, "a")
    story.end("a")
    story.evict(node)
    story.evict(1)
    story.snapshot()


@breaks("leaf-set-mismatch", "unlinked-node")
def an_evicted_node_among_the_leaves(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    with story.within("evict", "a"):
        story.unlink(1, "a")
    return place_of(story, "operation")


@breaks("leaf-set-mismatch", "inner-node", page=1)
def a_node_with_children_among_the_leaves(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens[:4], [1])
    with story.within("publish", "a"):
        story.create("a", 2, tokens[4:], 1)
        story.leaf(2, "a")
    return place_of(story, "operation")


@breaks("leaf-set-mismatch", "missing-leaf", request=None, page=1)
def a_childless_node_not_among_the_leaves(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    story.end("a")
    with story.within("evict"):
        story.unlink(2)
        story.no_leaf(2)
        story.free(None, 2)
    return place_of(story, "operation")


@silent
def leaves_that_are_put_right_within_the_operation(story):
    ready(story, "a", A, 1, 2)
    with story.within("publish", "a"):
        story.create("a", 1, A[:4])
        with story.within("release", "b", thread="w1"):
            pass  # another thread's operation says nothing about this one's nodes
        story.leaf(1, "a")


@breaks("ref-count-mismatch", "negative", page=1, also=(("ref-count-mismatch", "over-released"),))
def a_reference_below_nothing(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return story.reference(1, -1, "a")


@breaks("ref-count-mismatch", "no-owner", request=None, page=1)
def a_reference_for_nobody(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return story.reference(1, +1, None)


@breaks(
    "ref-count-mismatch",
    "over-released",
    request="a",
    other="b",
    page=1,
    also=(("ref-count-mismatch", "negative"),),
)
def anothers_reference_given_back(story):
    ready(story, "a", A, 1, 2)
    begin(story, "b", B, 3, 4)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    return story.reference(1, -1, "b")


@breaks("ref-count-mismatch", "not-released", page=1)
def a_reference_kept(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.drop("a", 1, 2)
    story.free("a", 2)
    return story.done("a")


@silent
def references_moved_to_a_deeper_node(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    story.reference(1, +1, "a")
    story.reference(2, +1, "a")
    story.reference(1, -1, "a")


@silent
def a_request_that_was_given_up_keeps_what_it_has_for_now(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.done("a", "error")
    story.release("a")


@silent
def a_reference_taken_before_the_watching(story):
    # Its request was under way already, so it was never seen to be sent in, nor to take it.
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.event("reference", "early", node=1, ref_before=2, ref_count=1)


@breaks("evicted-while-referenced", "referenced-node", other="b", page=1)
def a_referenced_node_evicted(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    with story.within("evict", "b"):
        place = story.unlink(1, "b")
        story.no_leaf(1, "b")
    return place


@breaks("unprotected-page", "no-reference", page=1)
def a_decode_on_a_page_that_nobody_refers_to(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    return story.decode("a")


@breaks(
    "unprotected-page",
    "no-reference",
    request="a",
    page=1,
    also=(("ref-count-mismatch", "no-owner"),),
)
def a_reference_that_is_taken_from_a_request_under_way(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    story.decode("a")
    story.token("a", 101)
    story.reference(1, -1, None)
    invocation = story.decode("a")
    story.reference(1, +1, None)
    return invocation


@silent
def a_page_that_is_referred_to_below(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    node = story.publish("a", tokens, [1, 2])
    story.reference(node, +1, "a")
    story.submit("b", (*A[:4], 99))
    story.hold("b", 1)
    story.allocate("b", 3)
    story.prefill("b")  # evicting the first page takes out the second before
    story.snapshot()


@breaks("unprotected-page", "no-reference", page=1)
def a_count_of_the_engines_own_that_is_too_low(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    root, node = story.state.snapshot().nodes
    return story.snapshot(nodes=(root, replace(node, ref_count=0)))


@breaks("unprotected-page", "no-reference", page=1)
def a_request_that_goes_on_from_a_node_without_references(story):
    ready(story, "a", A, 1, 2)
    story.publish("a", A, [1])
    story.reference(1, +1, "a")
    return story.event("unprotected", "a", (1,), node=1)


@breaks("parent-mismatch", "wrong-parent", page=2)
def a_node_that_points_to_no_parent(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.reference(story.publish("a", tokens, [1, 2]), +1, "a")
    return story.snapshot(misplaced=[(2, -1, 1)])


@breaks("parent-mismatch", "wrong-parent", page=2)
def a_lookup_that_passes_a_node_with_another_parent(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    return story.event("detached", "a", (2,), node=2, parent=0)


@breaks("parent-mismatch", "wrong-child", page=2)
def a_node_filed_under_another(story):
    tokens = (*A, 17, 18)
    ready(story, "a", tokens, 1, 2)
    story.publish("a", tokens, [1, 2])
    return story.event("detached", "a", (2,), node=2, parent=1)
