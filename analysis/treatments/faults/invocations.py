"""Faults in the arguments of an invocation, as a wrong engine would fill them."""

from __future__ import annotations

from analysis.treatments.faults.base import Injection, Site, fault


@fault("wrong-page", "wrong-kv-read", "cross-request", control=False)
def wrong_page(site: Site) -> Injection | None:
    """Replaces the first page of a row's block table by another request's page, once."""
    other = site.other
    if other is None or site.table[0] == site.tables[other, 0]:
        return None
    site.table[0] = site.tables[other, 0]
    return site.injection(site.table[0], other)


@fault("swapped-tables", "block-table-mismatch", "foreign-page")
def swapped_tables(site: Site) -> Injection | None:
    """Swaps the block tables of two rows of an invocation, once."""
    other = site.other
    if other is None:
        return None
    site.tables[[site.row, other]] = site.tables[[other, site.row]]
    return site.injection(site.table[0], other)


@fault("stale-page", "wrong-kv-read", "stale-after-free", control=False)
def stale_page(site: Site) -> Injection | None:
    """Replaces the first page of a row's block table by a freed page, once."""
    ids, free = site.invocation.request_ids, {page.index for page in site.free}
    for page, owner in site.memory.items():
        if page in free and owner not in ids:
            site.table[0] = page
            return Injection(site.request, owner, page)
    for row, owner in enumerate(ids):
        first, *further = site.tables[row].tolist()
        for page in further:  # it holds another request's data by now
            site.memory.pop(page, None)
        site.memory[first] = owner
    return None


@fault("seq-len-long", "seq-len-mismatch", "overread")
def seq_len_long(site: Site) -> Injection:
    """Increments the length of a row, once."""
    site.arrays["seq_lens"][site.row] = site.start + 2
    return site.injection()


@fault("seq-len-short", "seq-len-mismatch", "underread")
def seq_len_short(site: Site) -> Injection:
    """Decrements the length of a row, once."""
    site.arrays["seq_lens"][site.row] = site.start
    return site.injection()


@fault("start-position-early", "position-mismatch", "behind")
def start_position_early(site: Site) -> Injection:
    """Decrements the start position of a row, once."""
    site.arrays["start_positions"][site.row] -= 1
    return site.injection()


@fault("start-position-late", "position-mismatch", "ahead")
def start_position_late(site: Site) -> Injection | None:
    """Increments the start position of a row, once."""
    if (site.start + 1) // site.stride >= len(site.table):
        return None
    site.arrays["start_positions"][site.row] += 1
    return site.injection()


@fault("wrong-token", "token-mismatch", "wrong-token", phase="prefill", after=0)
def wrong_token(site: Site) -> Injection:
    """Changes a token of a row's prompt, once."""
    tokens = site.arrays["tokens"]
    tokens[site.row, 1] += 1 if tokens[site.row, 1] < 5 else -1
    return site.injection()


@fault("padding-page-in-table", "block-table-mismatch", "padding-page")
def padding_page_in_table(site: Site) -> Injection | None:
    """Replaces the first page of a row's block table by page 0, once."""
    if site.table[0] == 0:
        return None
    site.table[0] = 0
    return site.injection(0)


@fault("padding-writes-page", "shared-page-write", "padding-row", control=False)
def padding_writes_page(site: Site) -> Injection | None:
    """Puts a request's page into a padding row's block table, once."""
    padding = site.invocation.real
    if padding >= len(site.tables):
        return None
    site.tables[padding, 0] = site.table[0]
    return site.injection(site.table[0])


@fault("misplaced-write", "block-table-mismatch", "duplicate-page")
def misplaced_write(site: Site) -> Injection | None:
    """Redirects the write of a row from its last page to its first, once."""
    if site.own_block == 0:
        return None
    site.table[site.own_block] = site.table[0]
    return site.injection(site.table[0])


@fault("dropped-write", "token-without-invocation", "extra-token")
def dropped_write(site: Site) -> Injection:
    """Skips a decode; the engine gets the previous results again."""
    site.invocation.skip = True
    return site.injection()


@fault("shared-page-write", "shared-page-write", "request-row", needs=["trie"])
def shared_page_write(site: Site) -> Injection | None:
    """Redirects the write of a row to a page that the trie serves to others, once."""
    own = set(site.table.tolist())
    for node in site.probe.read().nodes:
        if node.page is not None and node.page not in own:
            site.table[site.own_block] = node.page
            return site.injection(node.page)
    return None


@fault("freed-in-flight", "in-flight-conflict", "freed")
def freed_in_flight(site: Site) -> Injection | None:
    """Frees a page of a decode row after its call, before it finishes, once."""
    pages = [page for page in site.held if page in site.table]
    if not pages:
        return None
    pool, entry = site.probe.pool, site.entry(pages[0])
    site.invocation.afterwards = lambda: pool.free_pages([entry])
    return site.injection(pages[0])
