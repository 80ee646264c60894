"""Drives a request that holds its pages with an allocation.

The batcher acquires and extends, an invocation publishes, and the request's task releases. None of
them yields in between, so each is one operation. Up to 3.4 they share one worker thread; from 3.5
on prefills, decodes and each request have threads of their own.
"""

from __future__ import annotations

from typing import Any

from shortfin_apps.llm.components.messages import InferencePhase

from analysis.shortfin.cache.allocations.server import InferenceRequest
from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.driver import Names, Request, RequestDriver, next_token
from analysis.shortfin.releases import installed_release, row_of

_THREADED = "phase-workers" in row_of(installed_release() or "").capabilities
_WORKERS = {
    "acquire": {"prefill"}, "publish": {"prefill", "decode"}, "extend": {"decode"},
    "release": {"request"},
}  # fmt: skip
"""Workers on which an operation runs, if there are several; each request has one of its own."""


class AllocationRequestDriver(RequestDriver):
    """A request with an allocation."""

    block = 1
    fatal = True
    threads = (
        "one for prefills, one for decodes, and one for each request"
        if _THREADED
        else "one worker thread"
    )
    threaded = _THREADED

    def __init__(self, request: Request, *rest: Any) -> None:
        super().__init__(request, *rest)
        # The request appends to this list object, which the allocation may keep.
        self.request: Any = InferenceRequest(InferencePhase.PREFILL, self.tokens, rid=request.name)

    @staticmethod
    def operations_of(request: Request, stride: int) -> tuple[str, ...]:
        return ("acquire", "publish", *("extend", "publish") * request.decodes, "release")

    def perform(self, operation: str) -> None:
        request = self.request
        if operation == "acquire":
            allocation = self.cache.acquire_pages_for_tokens(self.tokens, extra_token_slots=0)
            request.free_cache_pages()
            request.allocation = allocation
            self._invoke(self.tokens, indices(allocation.pages), 0)
        elif operation == "publish":
            total = request.start_position + len(self.tokens)
            request.publish_allocated_pages(total // self.stride)
        elif operation == "extend":
            if request.phase is InferencePhase.PREFILL:
                request.start_position = len(self.tokens) - 1
            request.reset(InferencePhase.DECODE)
            self.tokens.append(next_token(self.tokens))
            request.start_position += 1
            request.allocation.extend_allocation(self.tokens, extra_token_slots=1)
            self._invoke(self.tokens, indices(request.allocation.pages), request.start_position)
        else:
            request.free_cache_pages()

    @classmethod
    def can_overlap(cls, first: str, second: str) -> bool:
        one, other = _WORKERS[first], _WORKERS[second]
        return cls.threaded and (one != other or len(one) > 1 or "request" in one)

    def register(self, probe: Any) -> None:
        probe.note_request(self.request)

    def fail(self, operation: str) -> bool:
        super().fail(operation)
        return operation == "extend"  # the error is not caught and ends the batcher

    def block_table(self) -> list[int]:
        allocation = self.request.allocation
        return [] if allocation is None else indices(allocation.pages)

    def holds(self) -> list[int]:
        return list(dict.fromkeys(self.block_table()))

    def references(self) -> tuple[int, int]:
        held = int(self.request.allocation is not None)
        return held, held

    def nodes(self) -> list[Any]:
        node = getattr(self.request.allocation, "last_cached_node", None)
        return [] if node is None else [node]

    def state(self, pages: Names, nodes: Names) -> tuple[Any, ...]:
        allocation = self.request.allocation
        if allocation is None:
            return (self.position, self.failed)
        known = getattr(allocation, "tokens", ())
        return (
            self.position,
            self.failed,
            len(known),
            known is self.tokens,
            getattr(allocation, "number_of_published_pages", 0),
            pages(indices(allocation.pages)),
            nodes(self.nodes()),
        )


DRIVER = AllocationRequestDriver
