"""3.1: a request holds an allocation, and everything is done on one worker thread.

Its batcher acquires and extends, an invocation publishes, the request's own task releases; none of
them waits in the midst of it, so that each is one step.
"""

from __future__ import annotations

from typing import Any

from shortfin_apps.llm.components.messages import InferenceExecRequest, InferencePhase

from analysis.interleavings.scenarios import Request
from analysis.shortfin.cache.driver import Actor, Names
from analysis.shortfin.cache.probe import indices


class AllocationActor(Actor):
    """A request of 3.1."""

    block = 1
    fatal = True
    threads = "one worker thread"

    def __init__(self, request: Request, *rest: Any) -> None:
        super().__init__(request, *rest)
        # One list, which the request goes on with: the allocation may come to know it, too.
        self.request: Any = InferenceExecRequest(
            InferencePhase.PREFILL, self.tokens, rid=request.name
        )
        self._flown = False

    @staticmethod
    def plan(request: Request, stride: int) -> tuple[str, ...]:
        return ("acquire", "publish", *("extend", "publish") * request.decodes, "release")

    def do(self, operation: str) -> None:
        request = self.request
        if operation == "acquire":
            allocation = self.cache.acquire_pages_for_tokens(self.tokens, extra_token_slots=0)
            request.free_cache_pages()
            request.allocation = allocation
            self.fly(indices(allocation.pages), 0)
        elif operation == "publish":
            total = request.start_position + len(self.tokens)
            request.publish_allocated_pages(total // self.stride)
        elif operation == "extend":
            if request.phase is InferencePhase.PREFILL:
                request.start_position = len(self.tokens) - 1
            request.reset(InferencePhase.DECODE)
            self.tokens.append(self.next_token())
            request.start_position += 1
            request.allocation.extend_allocation(self.tokens, extra_token_slots=1)
            self.fly(indices(request.allocation.pages), request.start_position)
        else:
            request.free_cache_pages()

    def introduce(self, probe: Any) -> None:
        probe.native.batcher.submit(self.request)

    def take_leave(self, probe: Any) -> None:
        probe._forget(self.name)

    def fail(self, operation: str) -> bool:
        super().fail(operation)
        return operation == "extend"  # nobody catches it: the batcher ends

    def uses(self) -> list[int]:
        allocation = self.request.allocation
        return [] if allocation is None else indices(allocation.pages)

    def holds(self) -> list[int]:
        return list(dict.fromkeys(self.uses()))

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


ACTOR = AllocationActor
