"""What treatments need to know of the cache of 3.7; it has no treatment of its own."""

from __future__ import annotations

from typing import Any

from analysis.shortfin.treatment import LiveEngine

CACHE_OPERATIONS = ("allocate", "release_pages", "free_pages", "_match", "_evict_pages")
POOL_OPERATIONS = ("acquire_free_pages", "free_pages", "copy_page", "copy_page_index")
ALLOCATION_OPERATIONS = ()


def allocation_classes(engine: LiveEngine) -> list[Any]:
    """Return no class, because requests hold pages with a prefill and a page manager."""
    return []
