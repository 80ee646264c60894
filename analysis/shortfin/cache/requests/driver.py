"""Drives a request that allocates its own pages, on its own thread.

It uses the release's decoder, prefill and page manager. The pages of the prompt are freed through
the cache and those of the answer through the pool, so these are two operations.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, PageManager
from shortfin_apps.llm.components.kvcache.base_attention_cache import CacheAllocationFailure
from shortfin_apps.llm.components.prefill_config import PrefillConfig

from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.driver import Names, Request, RequestDriver, next_token


class OwnPagesDriver(RequestDriver):
    """A request with a prefill and a page manager."""

    block = 8
    fatal = False
    threads = "a thread for every request"
    threaded = True

    def __init__(self, request: Request, *rest: Any) -> None:
        super().__init__(request, *rest)
        self.prompt = list(request.prompt)
        self.decoder = self._decoder()
        self.prefill: Any = None
        self.manager: Any = None
        self._left = request.decodes

    def register(self, probe: Any) -> None:
        probe.note_request(self.decoder)

    def _decoder(self) -> Any:
        # Its constructor needs a batcher, but uses only the batcher's cache.
        decoder = LlmDecoder.__new__(LlmDecoder)
        decoder._page_cache, decoder._page_pool = self.cache, self.cache.page_pool
        decoder._unified_batcher = SimpleNamespace(get_page_cache=lambda: self.cache)
        decoder._tokens_per_page, decoder._rid = self.stride, self.name
        decoder._prefill_config = PrefillConfig(has_prefill_position=False)
        return decoder

    @staticmethod
    def operations_of(request: Request, stride: int) -> tuple[str, ...]:
        first = len(request.prompt)
        # A decode is an operation only if it needs a new page, else the cache is unchanged.
        positions = range(first, first + request.decodes)
        turns = sum(p == first or p % stride == 0 for p in positions)
        return ("allocate", *("extend",) * turns, "release", *("free",) * bool(turns))

    def perform(self, operation: str) -> None:
        getattr(self, f"_{operation}")()

    def _allocate(self) -> None:
        self.prefill = self.decoder.create_prefill_req(self.prompt)
        self._invoke(self.tokens, self.prefill.page_ids, 0)

    def _extend(self) -> None:
        if self.manager is None:
            self.manager = PageManager(
                self.cache.page_pool,
                initial_pages=indices(self.prefill.allocated_cache_info.pages),
                initial_length=len(self.prompt),
                tokens_per_page=self.stride,
            )
        while True:
            position = len(self.tokens)
            self._step()
            self.tokens.append(next_token(self.tokens))
            self._left -= 1
            self._invoke(self.tokens, self._table(), position)
            if not self._left or (position + 1) % self.stride == 0:
                return

    def _step(self) -> None:
        try:
            self.manager.step_pages([0])
        except TypeError as error:
            # The release extends its lists by None if the pool has too few pages.
            raise CacheAllocationFailure("The pool has too few pages.") from error

    def _release(self) -> None:
        self.prefill.free_cache_pages()

    def _free(self) -> None:
        self.manager.release_pages()

    def _table(self) -> list[int]:
        if self.manager is not None:
            return [*self.manager._shared_pages, *self.manager._beam_page_ids[0]]
        return [] if self.prefill is None else list(self.prefill.page_ids)

    def block_table(self) -> list[int]:
        released = self.prefill is None or self.prefill.allocated_cache_info is None
        return [] if self.failed or released else self._table()

    def holds(self) -> list[int]:
        if self.failed:
            return []
        info = None if self.prefill is None else self.prefill.allocated_cache_info
        held = [] if info is None else indices(info.pages)
        if self.manager is not None:
            held += indices(self.manager._allocated_pages)
        return list(dict.fromkeys(held))

    def references(self) -> tuple[int, int]:
        return 0, 0

    def nodes(self) -> list[Any]:
        return []

    def state(self, pages: Names, nodes: Names) -> tuple[Any, ...]:
        manager = self.manager
        return (
            self.position,
            self.failed,
            pages(self._table()),
            pages(self.holds()),
            None if manager is None else (pages(manager._free_pages), manager._position),
        )


DRIVER = OwnPagesDriver
