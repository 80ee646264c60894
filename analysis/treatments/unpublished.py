"""The treatment of pages that a request took, and that nobody gives back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.core.errors import EngineError
from analysis.shortfin.releases import row_of
from analysis.shortfin.treatment import (
    Treatment,
    allocation_kinds,
    cache_of,
    nodes_below,
    owner_of,
    part,
    replace_attribute,
)

if TYPE_CHECKING:
    from analysis.engine import Engine


class FreeUnpublishedPages(Treatment):
    """What a request took and did not publish goes back to the pool with it.

    On 3.9.0 it ends the leak that `keep-decode-record` ends at its root, so it is no fix beside it.
    """

    name = "free-unpublished-pages"
    hypothesis = "Pages that a request took, and did not publish, are lost when it ends."
    change = "At a request's end its pages are freed that are neither free nor known to the cache."

    @classmethod
    def check(cls, release: str | None, prefix_sharing: str) -> None:
        super().check(release, prefix_sharing)
        if prefix_sharing == "none" and "allocations" in row_of(release or "").capabilities:
            raise EngineError(
                f"The treatment {cls.name} needs prefix sharing trie on shortfin {release}: without"
                " it nothing is published, and all is freed."
            )

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        cache = cache_of(engine)
        kinds = allocation_kinds(engine)
        if kinds:
            self._by_allocation(undo, cache, kinds)
        else:
            self._by_request(engine, undo, cache)

    def _by_allocation(self, undo: ExitStack, cache: Any, kinds: list[Any]) -> None:
        published = {node.page.index for node in nodes_below(cache.root)}
        free, create = cache.page_pool.free_pages, type(cache.root).create_child

        def freed(pages: Any) -> Any:
            published.difference_update(page.index for page in pages)
            return free(pages)

        def created(node: Any, tokens: Any, page: Any) -> Any:
            child = create(node, tokens, page)
            published.add(child.page.index)
            return child

        def release(kind: Any) -> None:
            before = kind.release_pages

            def released(allocation: Any) -> Any:
                done = allocation._is_released
                answer = before(allocation)
                if not done and owner_of(allocation) is cache:
                    # Once published, a page may be another's too, even if its node was replaced.
                    mine = {p.index: p for p in allocation.pages if p.index not in published}
                    cache.page_pool.free_pages(list(mine.values()))
                return answer

            replace_attribute(undo, kind, "release_pages", released)

        replace_attribute(undo, cache.page_pool, "free_pages", freed)
        replace_attribute(undo, type(cache.root), "create_child", created)
        for kind in kinds:
            release(kind)

    def _by_request(self, engine: Engine, undo: ExitStack, cache: Any) -> None:
        decoding = part(engine, "decoder.decoder")
        manager, decoder = decoding.PageManager, decoding.LlmDecoder
        allocate, publish = manager.allocate, decoder.publish_request
        taken: dict[int, list[int]] = {}  # by the identity of a decoder's records

        def noted(self: Any, req: Any, allocated_cache_recs: Any, *args: Any, **named: Any) -> Any:
            pages, req = allocate(self, req, allocated_cache_recs, *args, **named)
            if self._page_cache is cache:
                taken.setdefault(id(allocated_cache_recs), []).extend(pages)
            return pages, req

        def published(self: Any, req: Any, publish_incomplete_page: bool = False) -> Any:
            records, lost = self._allocated_cach_recs, []
            if publish_incomplete_page and (record := records.get(req.instance_id)) is not None:
                # The last publication exchanges pages in the record, so they are compared before.
                known = {page.index for page in record.pages}
                lost = [p for p in taken.pop(id(records), ()) if p not in known]
            answer = publish(self, req, publish_incomplete_page)
            if lost:
                cache.free_allocated_pages(lost)
            return answer

        replace_attribute(undo, manager, "allocate", noted)
        replace_attribute(undo, decoder, "publish_request", published)
