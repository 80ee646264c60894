"""Drives a request that holds its pages with a decoder's records, on its own thread.

It uses the release's decoder and page manager. A decoder looks up and allocates in one method, but
another thread may run between the two calls. So they are two operations here, and the second one
passes the result of the lookup to the decoder.
"""

from __future__ import annotations

from typing import Any

from shortfin_apps.llm.components.decode_config import DecodeConfig
from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, PageManager
from shortfin_apps.llm.components.prefill_config import PrefillConfig

from analysis.shortfin.cache.base import indices
from analysis.shortfin.cache.driver import Names, Request, RequestDriver, next_token


class _LookedUp:
    """The cache for a decoder, with the result of an earlier lookup."""

    def __init__(self, cache: Any, found: Any) -> None:
        self._cache, self._found = cache, found

    def lookup(self, tokens: list[int]) -> Any:
        del tokens
        return self._found

    def allocate(self, *args: Any, **named: Any) -> Any:
        return self._cache.allocate(*args, **named)


class RecordRequestDriver(RequestDriver):
    """A request with a decoder."""

    block = 8
    fatal = False
    threads = "a thread for every request"
    threaded = True

    def __init__(self, request: Request, *rest: Any) -> None:
        super().__init__(request, *rest)
        self.prompt = list(request.prompt)
        self.decoder = self._decoder()
        self.manager: Any = None
        self._prefill: Any = None
        self._decodes: list[Any] = []
        self._found: Any = None
        self._left = request.decodes
        self._published = self._released = False
        self.decoded_pages: list[int] = []
        """Pages allocated for its answer, in order."""

    def register(self, probe: Any) -> None:
        probe.note_request(self.decoder)

    def _decoder(self) -> Any:
        # Its constructor needs a batcher, but uses only the batcher's cache.
        decoder = LlmDecoder.__new__(LlmDecoder)
        decoder._page_cache, decoder._page_pool = self.cache, self.cache.page_pool
        decoder._tokens_per_page, decoder._rid = self.stride, self.name
        decoder._prefill_config = PrefillConfig(has_prefill_position=False)
        decoder._decode_config = DecodeConfig(num_beams=1)
        decoder._allocated_cach_recs = {}
        return decoder

    @staticmethod
    def operations_of(request: Request, stride: int) -> tuple[str, ...]:
        first = len(request.prompt)
        # A decode is an operation only if it needs a new page, else the cache is unchanged.
        positions = range(first, first + request.decodes)
        turns = sum(p == first or p % stride == 0 for p in positions)
        end = ("finish", "release", "free") if request.decodes else ("finish", "release")
        return ("lookup", "allocate", "publish", *("extend",) * turns, *end)

    def perform(self, operation: str) -> None:
        getattr(self, f"_{operation}")()

    def _lookup(self) -> None:
        self._found = self.cache.lookup(self.prompt[: -self.stride])

    def _allocate(self) -> None:
        found, self._found = self._found, None
        decoder = self.decoder
        decoder._page_cache = _LookedUp(self.cache, found)
        try:
            self._prefill = decoder.create_prefill_req(self.prompt)
        finally:
            decoder._page_cache = self.cache
        self._invoke(self.tokens, self._prefill.page_ids, self._prefill.start_position)

    def _publish(self) -> None:
        decoder = self.decoder
        decoder.publish_request(self._prefill, publish_incomplete_page=False)
        record = decoder._allocated_cach_recs[self._prefill.instance_id]
        self.manager = PageManager(
            self.cache,
            self.cache.page_pool,
            initial_pages=indices(record.pages),
            initial_length=len(self.prompt),
            tokens_per_page=self.stride,
        )
        self._decodes = decoder.create_decode_reqs(self._prefill)

    def _extend(self) -> None:
        while True:
            position = len(self.tokens)
            token, before = next_token(self.tokens), set(self._table())
            self.manager.update_decode_reqs(
                [0], self._decodes, self.decoder._allocated_cach_recs, [token], position
            )
            self.tokens.append(token)
            self._left -= 1
            self.decoded_pages += [page for page in self._table() if page not in before]
            self._invoke(self.tokens, self._table(), position)
            if not self._left or (position + 1) % self.stride == 0:
                return

    def _finish(self) -> None:
        for request in self._decodes:
            self.decoder.publish_request(request, publish_incomplete_page=True)
        self._published = True

    def _release(self) -> None:
        for request in self._decodes:
            self.decoder.free_req_cache(request)
        self._released = True
        if self.operations[-1] == "release":
            self._free()

    def _free(self) -> None:
        self.manager.release_pages()

    def _table(self) -> list[int]:
        if self.manager is not None:
            return [*self.manager._shared_pages, *self.manager._beam_page_ids[0]]
        return [] if self._prefill is None else list(self._prefill.page_ids)

    def _records(self) -> list[Any]:
        return list(self.decoder._allocated_cach_recs.values())

    def block_table(self) -> list[int]:
        if self.failed or self._released or (self._published and hasattr(self.cache, "root")):
            return []
        return self._table()

    def looked_up(self) -> list[int]:
        return [] if self._found is None else indices(self._found.pages)

    def holds(self) -> list[int]:
        if self.failed:
            return []
        held: dict[int, None] = {}
        if not self._released:
            held.update(dict.fromkeys(self._table()))
            for record in self._records():
                held.update(dict.fromkeys([] if record is None else indices(record.pages)))
        if self.manager is not None:
            held.update(dict.fromkeys(self.manager._free_pages))
        return list(held)

    def references(self) -> tuple[int, int]:
        if self.failed or self._released:
            return 0, 0
        return (1, 1) if self._records() else (0, int(self._found is not None))

    def nodes(self) -> list[Any]:
        known = [self._found, *self._records()]
        nodes = [k.last_cached_node for k in known if k is not None]
        return [node for node in nodes if node is not None]

    def state(self, pages: Names, nodes: Names) -> tuple[Any, ...]:
        known = [self._found, *self._records()]
        manager = self.manager
        return (
            self.position,
            self.failed,
            tuple(
                None if k is None else
                (k.num_tokens, len(k.tokens), pages(indices(k.pages)),
                 getattr(k, "number_of_published_pages", 0))
                for k in known
            ),
            len({id(k) for k in known}),
            nodes(self.nodes()),
            () if self._prefill is None else pages(self._prefill.page_ids),
            None if manager is None else
            (pages(manager._free_pages), pages(manager._beam_page_ids[0]),
             pages(manager._shared_pages), manager._position),
            pages(self.decoded_pages),
        )  # fmt: skip


DRIVER = RecordRequestDriver
