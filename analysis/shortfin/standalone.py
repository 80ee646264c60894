"""The installed release's cache without a server: a real pool, no model and no batcher."""

from __future__ import annotations

import itertools
import logging
from contextlib import ExitStack
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import shortfin.array as sfnp
from shortfin import host
from shortfin_apps.llm.components import messages, service
from shortfin_apps.llm.components.kvcache import (
    base_attention_cache,
    page_pool,
    trie_attention_cache,
)

from analysis.shortfin.cache.base import LiveCache
from analysis.shortfin.cache.probe import BaseProbe
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.hooks import Changes
from analysis.shortfin.service import installed_service
from analysis.shortfin.treatment import replace_attribute

_ELEMENTS = 8
_names = itertools.count()


class _NoDevice(list[Any]):
    """No device, for a page table of none, but a length of one, which divides a page's size."""

    def __len__(self) -> int:
        return 1


class StandaloneSystem:
    """shortfin's CPU system with one worker, for pools. Close it at the end.

    While it is open, the cache's clock counts calls, so that evictions do not depend on time, and
    requests have no future, because only a worker could create it. No engine can run in the
    process at the same time.
    """

    def __init__(self) -> None:
        self.release, _ = installed_service()
        self._undo = ExitStack()
        self._system: Any = host.CPUSystemBuilder().create_system()
        self._undo.callback(self._system.shutdown)
        worker = self._system.create_worker(f"bare-{next(_names)}")
        self._fiber: Any = self._system.create_fiber(worker)  # keep a reference: devices do not
        self._tables: dict[int, list[Any]] = {}
        self._clock = itertools.count(1)
        clock = SimpleNamespace(monotonic=lambda: float(next(self._clock)))
        replace_attribute(self._undo, trie_attention_cache, "time", clock)
        no_future = SimpleNamespace(VoidFuture=SimpleNamespace)
        replace_attribute(self._undo, messages, "sf", no_future)
        # Add a root handler, else the pool's logging calls install one.
        handler = logging.NullHandler()
        logging.getLogger().addHandler(handler)
        self._undo.callback(logging.getLogger().removeHandler, handler)
        logger = logging.getLogger("shortfin_apps")  # failed allocations are expected here
        self._undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)

    def close(self) -> None:
        """Stop the system's worker, and restore the clock and the loggers."""
        self._tables.clear()
        self._fiber = None
        self._undo.close()

    def cache(self, prefix_sharing: str, page_count: int, tokens_per_page: int) -> Any:
        """Return a new cache of the release's own class with a new pool."""
        settings: dict[str, Any] = {}
        for field in fields(page_pool.PagePoolConfig):
            if field.name.endswith("elements_per_device"):
                settings[field.name] = [_ELEMENTS]
            elif field.name.endswith("elements"):
                settings[field.name] = _ELEMENTS
        config = page_pool.PagePoolConfig(
            dtype=sfnp.float16, alloc_page_count=page_count, **settings
        )
        if page_count not in self._tables:
            # Devices have few of them; pools can share them, because nothing is computed.
            made = page_pool.PagePool(devices=[self._fiber.device(0)], config=config)
            self._tables[page_count] = made.page_tables
        pool = page_pool.PagePool(devices=_NoDevice(), config=config)
        pool.page_tables = self._tables[page_count]
        kind = (
            base_attention_cache.BasePagedAttentionCache
            if prefix_sharing == "none"
            else trie_attention_cache.TriePagedAttentionCache
        )
        return kind(page_pool=pool, tokens_per_page=tokens_per_page)


class StandaloneService(LiveCache):
    """A service with only a cache and no server."""

    def __init__(self, cache: Any) -> None:
        super().__init__()
        kind = getattr(service, "LlmGenerateService", None) or service.GenerateService
        self.native = kind.__new__(kind)
        self.native.page_cache = cache
        self.native.prefill_functions, self.native.decode_functions = {}, {}
        for name in ("batcher", "prefill_batcher", "decode_batcher"):
            setattr(self.native, name, SimpleNamespace(submit=lambda item: None))


class StandaloneEngine:
    """The parts of an engine that treatments and cache observers use."""

    def __init__(self, system: StandaloneSystem, cache: Any, config: EngineConfig) -> None:
        self.release, self.config = system.release, config
        self.service = StandaloneService(cache)
        self.probe: BaseProbe | None = None
        self.changes = Changes()
        self.died = None
        self._clock = itertools.count()

    def clock_s(self) -> float:
        """Return a time that grows with every call, because no real time passes."""
        return next(self._clock) / 1e6
