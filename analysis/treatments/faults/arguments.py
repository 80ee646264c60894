"""Faults in arguments between their filling and the device's read.

The arguments are changed only while the device reads them. An observer that reads them after the
invocation does not see the change.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from analysis.shortfin.treatment import LiveEngine
from analysis.treatments.faults.base import Fault, Injection, Site, fault, place_of

_PATIENCE_S = 2.0
_secret = partial(fault, rule="argument-changed", secret=True)


@_secret("tokens-exchanged-after-filling", cause="tokens")
def tokens_exchanged(site: Site) -> Injection | None:
    """Swaps the tokens of two rows of a decode while the device reads, once."""
    tokens = site.arrays["tokens"]
    for other in range(site.invocation.real):
        if tokens[site.row, 0] != tokens[other, 0]:
            tokens[[site.row, other]] = tokens[[other, site.row]]
            return site.injection()
    return None


@_secret("tokens-of-last-invocation", cause="tokens")
def tokens_of_last(site: Site) -> Injection | None:
    """Sets the tokens of a decode to those of the previous one while the device reads, once."""
    tokens, last = site.arrays["tokens"], site.memory.get("tokens")
    site.memory["tokens"] = tokens.copy()
    if last is None or last.shape != tokens.shape or last[site.row, 0] == tokens[site.row, 0]:
        return None
    tokens[:] = last
    return site.injection()


@_secret("prompt-changed-after-filling", cause="tokens", phase="prefill", after=0)
def prompt_changed(site: Site) -> Injection:
    """Changes a token of a prefill row while the device reads, once."""
    tokens = site.arrays["tokens"]
    tokens[site.row, 1] += 1 if tokens[site.row, 1] < 5 else -1
    return site.injection()


@_secret("length-changed-after-filling", cause="seq_lens")
def length_changed(site: Site) -> Injection:
    """Shortens a decode row by one token while the device reads, once."""
    site.arrays["seq_lens"][site.row] -= 1
    return site.injection()


@_secret("start-changed-after-filling", cause="start_positions")
def start_changed(site: Site) -> Injection:
    """Decrements the start position of a decode row while the device reads, once."""
    site.arrays["start_positions"][site.row] -= 1
    return site.injection()


@_secret("table-changed-after-filling", cause="block_tables")
def table_changed(site: Site) -> Injection | None:
    """Replaces the first page of a decode row by a free page while the device reads, once."""
    if not site.free:
        return None
    # From the middle of the free list: such a page was rarely in a block table.
    site.table[0] = page = site.free[len(site.free) // 2].index
    return site.injection(page)


@fault("refilled-in-invocation", "argument-changed", "seq_lens")
def refilled_in_invocation(site: Site) -> Injection:
    """Overwrites the lengths of a decode after its call, before it finishes, once."""
    site.invocation.later = {"seq_lens": np.roll(site.arrays["seq_lens"], 1) + 1}
    return site.injection()


@fault("next-before-finish", "read-before-write", "write-pending", kind=Fault,
       needs=["request-list", "allocations", "overlaps"])  # fmt: skip
def next_before_finish(self: Fault, engine: LiveEngine, undo: ExitStack) -> None:
    """Reports a decode as done, with the previous results, before it finishes, once."""
    edits, results = engine.service.edits, self.memory
    begun = False

    def started(requests: list[Any]) -> None:
        nonlocal begun
        if self.injected is not None:
            begun |= any(request.rid == self.injected.request_id for request in requests)

    async def finished(requests: list[Any]) -> None:
        """Complete one request of a called decode, and wait for its next one."""
        for row, request in enumerate(requests):
            if request.rid in results and self.targets(request.rid):
                self.injected = Injection(request.rid, seq=place_of(engine.probe))
                edits.mute(requests, row)
                edits.complete(request, results[request.rid])
                deadline = time.monotonic() + _PATIENCE_S
                while not begun and time.monotonic() < deadline:
                    await asyncio.sleep(0.001)
                return

    edits.around_decodes(engine.service, undo, started, finished, results)
