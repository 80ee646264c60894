"""What treatments of the notes of a cache do, by hand, on that of a live engine that rests."""

from __future__ import annotations

from support import NEWEST, REPORTED, ChildRunner

_PRELUDE = """
from analysis.treatments import treat

def engine_with(pages, sharing="trie"):
    return Engine(EngineConfig(prefix_sharing=sharing, page_count=pages))

def count(node):
    return node.ref_count.count
"""


def test_3_1_0(child: ChildRunner) -> None:
    done = child(
        REPORTED,
        _PRELUDE
        + """
def twice(cache):
    # Two requests of the same two pages, one of them with a third, at once.
    tokens = list(range(32))
    first = cache.acquire_pages_for_tokens(tokens, extra_token_slots=0)
    second = cache.acquire_pages_for_tokens(tokens + list(range(16)), extra_token_slots=0)
    first.publish_pages_for_tokens(tokens)
    top = list(cache.root.children.values())
    second.publish_pages_for_tokens(tokens + list(range(16)))
    hidden = [node for node in top if node not in cache.root.children.values()]
    return len(hidden)

def grown(cache):
    # A request appends to the list that it gave, until its answer enters a second page.
    tokens = list(range(10))
    allocation = cache.acquire_pages_for_tokens(tokens, extra_token_slots=0)
    while len(tokens) < 17:
        tokens.append(1)
        allocation.extend_allocation(tokens, extra_token_slots=1)
    return len(allocation.pages)

def longer(cache):
    # A page is published, and later another behind it.
    allocation = cache.acquire_pages_for_tokens(list(range(40)), extra_token_slots=0)
    allocation.publish_pages_for_tokens(list(range(16)))
    allocation.publish_pages_for_tokens(list(range(40)))
    return len([node for node in cache.leaves if node.children])

def refused(cache):
    try:
        cache.acquire_pages_for_tokens(list(range(16 * 65)), extra_token_slots=0)
    except Exception as error:
        return [type(error).__name__, count(cache.root)]

def unpublished(cache):
    before = len(cache.page_pool.available_pages)
    allocation = cache.acquire_pages_for_tokens(list(range(40)), extra_token_slots=0)
    allocation.publish_pages_for_tokens(list(range(40)))
    allocation.release_pages()
    return before - len(cache.page_pool.available_pages)

def held(what, *names):
    with engine_with(64) as engine, treat(engine, *names):
        return what(engine.service.native.page_cache)

say({
    "twice": [held(twice), held(twice, "reuse-existing-node")],
    "grown": [held(grown), held(grown, "copy-tokens")],
    "longer": [held(longer), held(longer, "true-leaves")],
    "refused": [held(refused), held(refused, "give-back-reference")],
    "unpublished": [held(unpublished), held(unpublished, "free-unpublished-pages")],
})
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reply = done.reply
    assert reply["twice"] == [1, 0]
    assert reply["grown"] == [1, 2]
    assert reply["longer"] == [1, 0]
    assert reply["refused"] == [["CacheAllocationFailure", 1], ["CacheAllocationFailure", 0]]
    assert reply["unpublished"] == [3, 2]


def test_3_9_0(child: ChildRunner) -> None:
    done = child(
        NEWEST,
        _PRELUDE
        + """
def aligned(cache):
    # A prompt that fills its page, and one page more for its answer.
    info = cache.publish_pages_for_tokens(cache.allocate(list(range(16)), cache.lookup([])))
    node = info.last_cached_node
    more = cache.allocate([1], info, 1)
    taken = count(node)
    cache.release_pages(more)
    return [taken, count(node)]

def equal(cache):
    # Two requests with the same prompt at once; the one that published ends first.
    infos = [cache.lookup([]) for _ in range(2)]
    infos = [cache.allocate(list(range(20)), info) for info in infos]
    first, second = [cache.publish_pages_for_tokens(info) for info in infos]
    node = first.last_cached_node
    shared = second.pages[0].index == first.pages[0].index
    cache.release_pages(first)
    left = count(node)
    cache.release_pages(second)
    return [shared, left, count(node)]

def taken_again(cache):
    # The duplicate of two equal prompts is freed, and taken by another request.
    infos = [cache.allocate(list(range(20)), cache.lookup([])) for _ in range(2)]
    for info in [cache.publish_pages_for_tokens(info) for info in infos]:
        cache.release_pages(info)
    [page] = cache.allocate([1], cache.lookup([])).pages
    return len(cache.get_allocated_pages([page.index]))

def found(cache):
    # What a request finds must be evicted for it, or it waits.
    info = cache.publish_pages_for_tokens(cache.allocate(list(range(64)), cache.lookup([])))
    cache.release_pages(info)
    info = cache.lookup(list(range(32)))  # of a request that ends here
    node, counts = info.last_cached_node, [count(info.last_cached_node)]
    del info
    cache.lookup([])
    counts.append(count(node))
    info = cache.lookup(list(range(32)))
    cache.release_pages(info)  # and one that gives back what it found
    counts.append(count(node))
    other = cache.allocate(list(range(100, 148)), cache.lookup([]))  # 3 of 8 pages
    info = cache.lookup(list(range(32)))
    pinned = count(info.last_cached_node)
    try:
        pages = [page.index for page in cache.allocate(list(range(200, 264)), info).pages]
    except Exception as error:
        return [pinned, type(error).__name__, count(info.last_cached_node), counts]
    return [pinned, len(pages) - len(set(pages)), count(info.last_cached_node), counts]

def untreated(*names):
    with engine_with(8) as engine:
        cache = engine.service.native.page_cache
        with treat(engine, *names):
            reply = found(cache)
            info = cache.lookup(list(range(32)))
            reply.append(count(info.last_cached_node))
        return [*reply, count(info.last_cached_node)]

def held(what, *names, pages=64):
    with engine_with(pages) as engine, treat(engine, *names):
        return what(engine.service.native.page_cache)

def leaked(*names, sharing):
    with engine_with(64, sharing) as engine, treat(engine, *names):
        for start in (1, 2, 3):
            engine.generate(f"{start} {start + 1} {start + 2} {start + 3} ", 15, 20)
        return engine.cache.snapshot().counts["leaked"]

fixed = ("keep-decode-record",)
say({
    "aligned": [held(aligned), held(aligned, "register-once")],
    "equal": [held(equal), held(equal, "refer-to-published")],
    "taken again": [held(taken_again), held(taken_again, "delist-freed-pages")],
    "found": [held(found, pages=8), untreated("pin-on-lookup")],
    "leaked": {s: [leaked(sharing=s), leaked("keep-decode-record", sharing=s),
                   leaked("free-unpublished-pages", sharing=s)] for s in ("none", "trie")},
})
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reply = done.reply
    assert reply["aligned"] == [[2, 1], [1, 0]]
    assert reply["equal"] == [[True, 0, 0], [True, 1, 0]]
    assert reply["taken again"] == [2, 1]
    (unpinned, twice, _, never), (pinned, refused, left, counts, last, ended) = reply["found"]
    assert never == [0, 0, 0]
    assert counts == [1, 0, 0]
    assert (last, ended) == (1, 0)
    assert (unpinned, pinned) == (0, 1)
    assert twice > 0
    assert (refused, left) == ("CacheAllocationFailure", 0)
    assert reply["leaked"] == {"none": [3, 0, 0], "trie": [3, 0, 0]}
