"""The operations of a live cache, by the dialect that it speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from analysis.shortfin.cache import part_of
from analysis.shortfin.treatment import LiveEngine, cache_of


def dialect_of(engine: LiveEngine) -> Any:
    """Return the module with the treatments of the dialect that the engine's cache speaks."""
    return part_of(engine.release, "treatments")


def cache_operations(engine: LiveEngine) -> Iterator[tuple[Any, str, Callable[..., bool]]]:
    """Yield the operations of the cache and its pool: owner, name, and what recognises a call.

    The last returns, for the arguments of a call, whether it is one on this engine's cache: an
    owner may be a class that engines share.
    """
    cache, dialect = cache_of(engine), dialect_of(engine)
    owners = {cache: dialect.CACHE_OPERATIONS, cache.page_pool: dialect.POOL_OPERATIONS}
    for owner, names in owners.items():
        for name in names:
            if hasattr(owner, name):
                yield owner, name, lambda *args, **named: True
    for kind in dialect.allocation_classes(engine):
        for name in dialect.ALLOCATION_OPERATIONS:
            yield kind, name, lambda allocation, *a, **n: dialect.owner_of(allocation) is cache
