"""Faults in the arguments of an invocation."""

from __future__ import annotations

from typing import Any

from analysis.treatments.faults.base import Injection, InvocationFault, another, own_block
from analysis.treatments.invocations import PendingInvocation


class WrongPage(InvocationFault):
    """A row reads another request's page."""

    name = "fault:wrong-page"
    control = False  # it needs a circumstance that a sweep may not have
    change = "The first page of one row's block table is another request's, once."
    rule, cause = "wrong-kv-read", "cross-request"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        other = another(invocation, row)
        if other is None:
            return None
        tables = invocation.arrays["block_tables"]
        if tables[row, 0] == tables[other, 0]:
            return None
        tables[row, 0] = tables[other, 0]
        ids = invocation.request_ids
        return Injection(ids[row], ids[other], int(tables[row, 0]))


class SwappedTables(InvocationFault):
    """Two rows have each other's pages."""

    name = "fault:swapped-tables"
    change = "Two rows of one invocation have each other's block tables, once."
    rule, cause = "block-table-mismatch", "foreign-page"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        other = another(invocation, row)
        if other is None:
            return None
        tables = invocation.arrays["block_tables"]
        tables[[row, other]] = tables[[other, row]]
        ids = invocation.request_ids
        return Injection(ids[row], ids[other], int(tables[row, 0]))


class StalePage(InvocationFault):
    """A row reads a page that an earlier request left behind."""

    name = "fault:stale-page"
    control = False  # it needs a circumstance that a sweep may not have
    change = "The first page of one row's block table is a free one that was used before, once."
    rule, cause = "wrong-kv-read", "stale-after-free"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._seen: dict[int, str] = {}

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tables, ids = invocation.arrays["block_tables"], invocation.request_ids
        free = {page.index for page in probe.pool.available_pages}
        for page, owner in self._seen.items():
            if page in free and owner not in ids:
                tables[row, 0] = page
                return Injection(ids[row], owner, page)
        for place, owner in enumerate(ids):
            self._seen[int(tables[place, 0])] = owner
        return None


class SeqLenLong(InvocationFault):
    """A row attends to one slot more than it has."""

    name = "fault:seq-len-long"
    change = "One row's length is one too long, once."
    rule, cause = "seq-len-mismatch", "overread"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.arrays["seq_lens"][row] = invocation.arrays["start_positions"][row] + 2
        return Injection(invocation.request_ids[row])


class SeqLenShort(InvocationFault):
    """A row does not attend to its own last token."""

    name = "fault:seq-len-short"
    change = "One row's length is one too short, once."
    rule, cause = "seq-len-mismatch", "underread"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.arrays["seq_lens"][row] = invocation.arrays["start_positions"][row]
        return Injection(invocation.request_ids[row])


class StartPositionEarly(InvocationFault):
    """A row overwrites its last token."""

    name = "fault:start-position-early"
    change = "One row starts one position too early, once."
    rule, cause = "position-mismatch", "behind"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.arrays["start_positions"][row] -= 1
        return Injection(invocation.request_ids[row])


class StartPositionLate(InvocationFault):
    """A row leaves a gap."""

    name = "fault:start-position-late"
    change = "One row starts one position too late, once."
    rule, cause = "position-mismatch", "ahead"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        starts = invocation.arrays["start_positions"]
        if (int(starts[row]) + 1) // probe.cache.tokens_per_page >= invocation.arrays[
            "block_tables"
        ].shape[1]:
            return None
        starts[row] += 1
        return Injection(invocation.request_ids[row])


class WrongToken(InvocationFault):
    """A row is prefilled with a token that is not its own."""

    name = "fault:wrong-token"
    change = "One token of one row's prompt is another, once."
    phase, after = "prefill", 0
    rule, cause = "token-mismatch", "wrong-token"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tokens = invocation.arrays["tokens"]
        tokens[row, 1] = tokens[row, 1] + 1 if tokens[row, 1] < 5 else tokens[row, 1] - 1
        return Injection(invocation.request_ids[row])


class PaddingPageInTable(InvocationFault):
    """A row has the padding page for one of its own."""

    name = "fault:padding-page-in-table"
    change = "The first page of one row's block table is page 0, once."
    rule, cause = "block-table-mismatch", "padding-page"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tables = invocation.arrays["block_tables"]
        if tables[row, 0] == 0:
            return None
        tables[row, 0] = 0
        return Injection(invocation.request_ids[row], None, 0)


class PaddingWritesPage(InvocationFault):
    """Padding is written over a request's data."""

    name = "fault:padding-writes-page"
    control = False  # it needs a circumstance that a sweep may not have
    change = "A padding row's block table has a request's page, once."
    rule, cause = "shared-page-write", "padding-row"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tables = invocation.arrays["block_tables"]
        if invocation.real >= len(tables):
            return None
        tables[invocation.real, 0] = tables[row, 0]
        return Injection(invocation.request_ids[row], None, int(tables[row, 0]))


class MisplacedWrite(InvocationFault):
    """A row's new key and value go where they are never read again."""

    name = "fault:misplaced-write"
    change = "One row writes into its own first page instead of its last, once."
    rule, cause = "block-table-mismatch", "duplicate-page"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tables, block = invocation.arrays["block_tables"], own_block(invocation, row, probe)
        if block == 0:
            return None
        tables[row, block] = tables[row, 0]
        return Injection(invocation.request_ids[row], None, int(tables[row, 0]))


class DroppedWrite(InvocationFault):
    """A decode step does not happen, and nobody notices."""

    name = "fault:dropped-write"
    change = "One decode is not made; the results of the last one are given again."
    rule, cause = "token-without-invocation", "extra-token"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        invocation.skip = True
        return Injection(invocation.request_ids[row])


class SharedPageWrite(InvocationFault):
    """A row writes into a page of the trie."""

    name = "fault:shared-page-write"
    change = "The page that one row writes to is one that the trie serves to others, once."
    needs = frozenset({"trie"})
    rule, cause = "shared-page-write", "request-row"

    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        tables, block = invocation.arrays["block_tables"], own_block(invocation, row, probe)
        own = set(tables[row].tolist())
        for node in probe.read().nodes:
            if node.page is not None and node.page not in own:
                tables[row, block] = node.page
                return Injection(invocation.request_ids[row], None, node.page)
        return None


INVOCATION_FAULTS = (
    WrongPage, SwappedTables, StalePage, SeqLenLong, SeqLenShort, StartPositionEarly,
    StartPositionLate, WrongToken, PaddingPageInTable, PaddingWritesPage, MisplacedWrite,
    DroppedWrite, SharedPageWrite,
)  # fmt: skip
