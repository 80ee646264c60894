"""What watching a live cache has in common in every generation of shortfin."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from analysis.core.errors import EngineError
from analysis.model import elements
from analysis.shortfin.cache.trie import read_trie
from analysis.shortfin.hooks import CacheObserver, Hooks
from analysis.shortfin.locks import Locks, WatchedLock, treatment_locks
from analysis.shortfin.scores import copy_scores
from analysis.shortfin.verify import (
    FILLED,
    Filled,
    changes,
    chosen_by,
    mapped_of,
    note_filling,
    noted_logits,
    raw,
)
from analysis.snapshots.snapshot import CacheState, PageContent

CURRENT_INVOCATION: ContextVar[Any] = ContextVar("CURRENT_INVOCATION", default=None)
"""The engine's process that is calling the compiled model."""
CURRENT_REQUEST: ContextVar[str | None] = ContextVar("CURRENT_REQUEST", default=None)
"""The request that a task of the engine works for."""
_SETTLE_S = 0.001
_LONG_S = 0.5
"""Locks of the cache are told that have been held for longer; most are for microseconds."""


class NodeNumbers:
    """Gives every node of a trie a number, from 0 for the root, for as long as it lives."""

    def __init__(self) -> None:
        self._next = itertools.count()
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._of_counts: dict[int, weakref.ref[Any]] = {}

    def of(self, node: Any) -> int:
        """Return the number of a node, a new one if it was never seen."""
        number = self._numbers.get(node)
        if number is None:
            number = self._numbers.setdefault(node, next(self._next))
            # An id comes again only when the node that had it is gone, and with it this.
            key, counts = id(node.ref_count), self._of_counts
            counts[key] = weakref.ref(node, lambda gone: _drop(counts, key, gone))
        return number

    def knows(self, node: Any) -> bool:
        """Tell whether a node was seen, and so belongs to this engine."""
        return node in self._numbers

    def counted_by(self, ref_count: Any) -> Any | None:
        """Return the node that a reference count belongs to, None if it is another engine's."""
        reference = self._of_counts.get(id(ref_count))
        node = reference() if reference is not None else None
        return node if node is not None and node.ref_count is ref_count else None


def _drop(counts: dict[int, weakref.ref[Any]], key: int, gone: weakref.ref[Any]) -> None:
    if counts.get(key) is gone:
        counts.pop(key, None)


class WatchedSet(set[Any]):
    """The engine's set of leaves, which tells what is put in and taken out."""

    def __init__(self, content: Iterable[Any], tell: Callable[[str, Any], None]) -> None:
        super().__init__(content)
        self._tell = tell

    def add(self, element: Any) -> None:
        """Put a leaf in."""
        new = element not in self
        super().add(element)
        if new:
            self._tell("leaf_added", element)

    def remove(self, element: Any) -> None:
        """Take a leaf out; KeyError if it is not in."""
        super().remove(element)
        self._tell("leaf_removed", element)

    def discard(self, element: Any) -> None:
        """Take a leaf out if it is in."""
        if element in self:
            self.remove(element)


held_back: dict[int, Any] = {}
"""By the id of a pool: what tells which pages a treatment keeps from it. They count as free."""


class FinishedInvocation(NamedTuple):
    """An invocation whose results are there, or soon will be."""

    invocation: Any
    """What the watcher gave when it began; None if its beginning could not be told."""
    phase: str
    rows: int
    """Rows that carry a request."""
    arguments: Sequence[Any]
    """Those before the page tables."""
    results: Sequence[Any] = ()
    filled: Mapping[int, Filled] | None = None
    """What the arguments were filled with; None if that was not noted."""
    returned: Sequence[bytes] = ()
    """The bytes of the arguments when the call had returned."""


class CacheProbe(ABC):
    """Reads the cache of one live engine, and, once attached, tells a watcher what it does.

    The engine's own objects are read, never copies that were kept on the side, but for which
    objects belong to requests under way: those are noted when they are made, and searched for
    among all objects of the process where nobody noted them.
    """

    def __init__(self, native: Any, numbers: NodeNumbers) -> None:
        self.native = native
        self.cache = native.page_cache
        self.pool = self.cache.page_pool
        self.numbers = numbers
        self.watcher: CacheObserver | None = None
        self._hooks: Hooks | None = None
        self._thread = threading.local()
        self._locks: list[WatchedLock] = []
        self._told: dict[str, set[tuple[Any, ...]]] = {}
        """What is told once of each request under way."""
        if (root := getattr(self.cache, "root", None)) is not None:
            numbers.of(root)

    # -- reading ---------------------------------------------------------------------------

    def read(self) -> CacheState:
        """Return the state of the cache as it is this instant."""
        root = getattr(self.cache, "root", None)
        trie = None
        if root is not None:
            trie = read_trie(root, getattr(self.cache, "leaves", ()), self.numbers.of)
        listed = getattr(self.cache, "_allocated_pages", None)
        return CacheState(
            page_count=len(self.pool.attn_page_entries),
            free=[
                *(page.index for page in list(self.pool.available_pages)),
                *held_back.get(id(self.pool), list)(),
            ],
            holdings={request: pages for request, pages in self.holdings().items() if pages},
            nodes=tuple(trie.nodes) if trie is not None else (),
            duplicates=tuple(p.index for p in getattr(self.cache, "_duplicated_pages", ())),
            misfiled=trie.misfiled if trie is not None else (),
            misplaced=trie.misplaced if trie is not None else (),
            allocated=None if listed is None else tuple(indices(list(listed))),
        )

    @abstractmethod
    def holdings(self) -> dict[str, list[int]]:
        """Return the pages that each request under way holds, each page once."""

    @abstractmethod
    def find_requests(self) -> None:
        """Search for requests under way that nobody noted when they began."""

    def contents(self, pages: Sequence[int]) -> dict[int, PageContent]:
        """Return what pages hold, over all devices. Raises EngineError where they cannot be read.

        An invocation that is under way may write to them meanwhile.
        """
        elements.check(self.dtype)
        try:
            return {page: _content(self._elements(page)) for page in pages}
        except Exception as error:
            raise EngineError(
                f"The page table of this device cannot be read from here: {error}"
            ) from error

    @property
    def page_table_bytes(self) -> int:
        """Bytes of all page tables of the pool, over all devices."""
        return sum(
            int(table.dtype.compute_dense_nd_size(list(table.shape)))
            for table in self.pool.page_tables
        )

    @property
    def dtype(self) -> str:
        """The type of the keys and values in the page tables, by its name."""
        return str(self.pool.page_tables[0].dtype)

    def _bytes(self, page: int) -> bytes:
        """Return a page's bytes, over all devices."""
        return b"".join(raw(table.view(page)) for table in self.pool.page_tables)

    def _elements(self, page: int) -> Any:
        """Return a page's elements. Raises EngineError for a type that cannot be read."""
        return elements.decode(self._bytes(page), self.dtype)

    # -- watching --------------------------------------------------------------------------

    def attach(self, watcher: CacheObserver) -> None:
        """Put hooks on the live objects. Raises EngineError if there are some already."""
        if self._hooks is not None:
            raise EngineError("This engine is watched already: end that first.")
        self.watcher = watcher
        self._hooks = hooks = Hooks(watcher)
        try:
            self.find_requests()
            self._hook_locks(hooks)
            self._hook_pool(hooks)
            if hasattr(self.cache, "root"):
                self._hook_trie(hooks)
            self.hook(hooks)
            self._hook_invocations(hooks)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take the hooks off, so that every object is as it was before."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.restore()

    @abstractmethod
    def hook(self, hooks: Hooks) -> None:
        """Watch what is particular to the generation."""

    def _tell(self, kind: str, **fields: Any) -> None:
        assert self.watcher is not None
        self.watcher.event(kind, **fields)

    def tell_twice(self, request_id: str, pages: Sequence[int]) -> None:
        """Tell, once, which pages a request's own list has more than once."""
        if len(set(pages)) == len(pages):
            return
        twice = sorted({page for page in pages if pages.count(page) > 1})
        if self._first(request_id, ("twice", *twice)):
            self._tell("duplicate_page", request_id=request_id, pages=twice)

    def _first(self, request_id: str, what: tuple[Any, ...]) -> bool:
        """Tell whether something was not told yet of a request."""
        told = self._told.setdefault(request_id, set())
        new = what not in told
        told.add(what)
        return new

    def _forget(self, request_id: str) -> None:
        """Forget all that was noted of a request, which has ended."""
        self._told.pop(request_id, None)

    def _free_count(self) -> int:
        return len(self.pool.available_pages) + len(held_back.get(id(self.pool), list)())

    def _hook_locks(self, hooks: Hooks) -> None:
        """Have the cache's own locks tell who holds them."""
        hooks.watcher.locks = locks = Locks()
        for owner, attribute, name in (
            (self.pool, "_lock", "pool"),
            (self.cache, "_lock", "cache"),
            (self.cache, "_ref_count_lock", "references"),
        ):
            lock = vars(owner).get(attribute)
            if lock is not None:
                self._locks.append(WatchedLock(lock, name, locks))
                hooks.attribute(owner, attribute, self._locks[-1])
        # A treatment may have been applied before.
        for lock in treatment_locks.get(id(self.cache), ()):
            hooks.attribute(lock, "locks", locks)

    def kept_locks(self) -> list[dict[str, Any]]:
        """Return which locks some thread has had for long, and which thread that is."""
        now, kept = time.monotonic(), []
        for lock in (*self._locks, *treatment_locks.get(id(self.cache), ())):
            if (holder := lock.holder) is not None and now - holder[2] > _LONG_S:
                seconds = round(now - holder[2], 1)
                thread = f"{holder[1]} {holder[0]}"
                kept.append({"lock": lock.name, "thread": thread, "seconds": seconds})
        return kept

    def _hook_pool(self, hooks: Hooks) -> None:
        def acquired(state: Any, pages: Any, error: Any, count: int) -> None:
            if pages:
                self._tell("acquire", pages=indices(pages), free_pages=self._free_count())
            elif pages is None and error is None:
                # Of what a treatment holds back there was nothing to be had.
                self._tell(
                    "alloc_failed",
                    free_pages=len(self.pool.available_pages),
                    wanted=count,
                )

        def freeing(pages: Sequence[Any]) -> Any:
            # Before they are free: whoever takes them next is told later, in this order.
            freed_pages = list(dict.fromkeys(indices(pages)))
            if (evicted := getattr(self._thread, "evicted", None)) is not None:
                evicted.extend(freed_pages)
            return hooks.watcher.reserve(), freed_pages

        def freed(state: Any, result: Any, error: Any, pages: Any) -> None:
            place, freed_pages = state
            if freed_pages:
                self._tell("free", place=place, pages=freed_pages, free_pages=self._free_count())
            else:
                hooks.watcher.unused(place)

        hooks.around(self.pool, "acquire_free_pages", after=acquired)
        hooks.around(self.pool, "free_pages", before=freeing, after=freed)

    def _hook_trie(self, hooks: Hooks) -> None:
        node_class = type(self.cache.root)
        count_class = type(self.cache.root.ref_count)
        numbers = self.numbers

        def place_of(parent: Any, tokens: Any, page: Any) -> Any:
            return parent.children.get(tokens)

        def created(before: Any, node: Any, error: Any, parent: Any, tokens: Any, _: Any) -> None:
            if node is None or node is before:
                return
            if before is not None:
                self._tell("node_overwritten", node=numbers.of(before), pages=[before.page.index])
            self._tell(
                "create",
                node=numbers.of(node),
                parent=numbers.of(parent),
                pages=[node.page.index],
                tokens=tuple(tokens),
            )

        def unlinking(node: Any) -> Any:
            parent = node.parent
            return parent, None if parent is None else parent.children.get(node.tokens)

        def unlinked(state: Any, result: Any, error: Any, node: Any) -> None:
            parent, in_place = state
            if parent is None or error is not None:
                return
            self._tell(
                "unlink",
                node=numbers.of(node),
                parent=numbers.of(parent),
                pages=[node.page.index],
            )
            if in_place is not node and in_place is not None:
                self._tell(
                    "node_overwritten", node=numbers.of(in_place), pages=[in_place.page.index]
                )

        def counted(state: Any, result: Any, error: Any, count: Any) -> None:
            node = numbers.counted_by(count)
            if node is not None and error is None:
                change = 1 if state == "increment" else -1
                self._tell(
                    "reference",
                    node=numbers.of(node),
                    ref_before=result - change,
                    ref_count=result,
                )

        def ours(node: Any, *rest: Any) -> bool:
            return numbers.knows(node)

        hooks.around(node_class, "create_child", mine=ours, before=place_of, after=created)
        hooks.around(node_class, "unlink", mine=ours, before=unlinking, after=unlinked)
        for name in ("increment", "decrement"):
            hooks.around(
                count_class,
                name,
                mine=lambda count: numbers.counted_by(count) is not None,
                before=lambda count, name=name: name,
                after=counted,
            )
        self.read()  # numbers every node that is there already
        self._hook_leaves(hooks)

    def _hook_leaves(self, hooks: Hooks) -> None:
        def tell(kind: str, node: Any) -> None:
            try:
                self._tell(kind, node=self.numbers.of(node))
            except Exception as error:
                hooks.watcher.fault(error)

        original = self.cache.leaves
        watched = WatchedSet(original, tell)
        self._swap_leaves(original, watched)

        def back() -> None:
            plain = set(watched)
            original.clear()
            original.update(plain)
            self._swap_leaves(watched, original)

        hooks.also(back)

    def _swap_leaves(self, old: set[Any], new: set[Any]) -> None:
        """Put a set of leaves in another's place, with what was just done to the old one."""
        was = set(old)
        self.cache.leaves = new
        time.sleep(_SETTLE_S)
        now = set(old)
        set.update(new, now - was)
        set.difference_update(new, was - now)

    def _hook_match(self, hooks: Hooks, name: str) -> None:
        stride = self.cache.tokens_per_page

        def matched(state: Any, result: Any, error: Any, tokens: Sequence[int]) -> None:
            if result is None:
                return
            node, pages = result
            self._tell_detached(node)
            hit = min(len(pages) * stride, len(tokens))
            self._tell(
                "match",
                node=self.numbers.of(node),
                pages=indices(pages),
                tokens_hit=hit,
                tokens_missed=len(tokens) - hit,
            )

        hooks.around(self.cache, name, after=matched)

    def _tell_detached(self, node: Any) -> None:
        """Tell the first node on the way up to the root that its parent has not as a child."""
        root, steps = self.cache.root, 0
        while node is not root:
            parent, steps = node.parent, steps + 1
            there = None if parent is None else (parent.children or {}).get(node.tokens)
            if there is not node or steps > len(self.pool.attn_page_entries):
                above = None if parent is None else self.numbers.of(parent)
                number, page = self.numbers.of(node), node.page.index
                self._tell("detached", node=number, parent=above, pages=[page])
                return
            node = parent

    def tell_unprotected(self, request_id: str, node: Any) -> None:
        """Tell, once, that nothing refers to the node that a request goes on from."""
        if node is None or node.ref_count.count > 0 or node is self.cache.root:
            return
        number = self.numbers.of(node)
        if self._first(request_id, ("unprotected", number)):
            page = node.page.index
            self._tell("unprotected", request_id=request_id, node=number, pages=[page])

    def _hook_evict(self, hooks: Hooks, name: str) -> None:
        def evicting(count: int) -> list[int]:
            pages: list[int] = []  # filled when they are freed
            self._thread.evicted = pages
            return pages

        def evicted(pages: list[int], count: int | None, error: Any, wanted: int) -> None:
            self._thread.evicted = None
            if pages:
                self._tell(
                    "evict",
                    pages=pages,
                    free_pages=self._free_count(),
                    wanted=wanted,
                )

        hooks.around(self.cache, name, before=evicting, after=evicted)

    # -- invocations ---------------------------------------------------------------------------

    @abstractmethod
    def invocation_requests(self, process: Any) -> list[str]:
        """Return the request of each row of the invocation of an engine's process."""

    def argument_names(self, phase: str, count: int) -> tuple[str, ...]:
        """Return the names of the model's arguments that come before the page tables."""
        if phase == "decode":
            return ("tokens", "seq_lens", "start_positions", "block_tables")
        if count == 4:
            return ("tokens", "start_positions", "seq_lens", "block_tables")
        return ("tokens", "seq_lens", "block_tables")

    def starts_invocation(self, process: Any) -> None:
        """Note, in the task of an engine's process, that it is to call the model."""
        CURRENT_INVOCATION.set(process)
        FILLED.set({} if self.watcher is not None and self.watcher.verifies else None)

    def tell_chosen(self, request_id: str, logits: bytes, token: int | None) -> None:
        """Tell from which logits a request's next token was chosen, and which."""
        assert self.watcher is not None
        self.watcher.at_token("chosen", request_id, token, noted_logits(logits))

    def _hook_filling(self, hooks: Hooks) -> None:
        """Note what arguments are filled with, where the engine sends them to the device."""
        fault = hooks.watcher.fault

        def wrap(fill: Any) -> Any:
            def filling(host: Any, device: Any) -> Any:
                if FILLED.get() is not None:
                    try:
                        note_filling(host, device)
                    except Exception as error:
                        FILLED.set(None)
                        fault(error)
                return fill(host, device)

            return filling

        hooks.wrap(type(self.pool.page_tables[0]), "copy_to", wrap)

    def _hook_invocations(self, hooks: Hooks) -> None:
        self._hook_filling(hooks)
        for phase in ("prefill", "decode"):
            functions = getattr(self.native, f"{phase}_functions")
            for size, function in list(functions.items()):
                hooks.item(functions, size, self._tap(phase, function))

    def _tap(self, phase: str, function: Any) -> Any:
        """Return what calls the compiled model and tells with which arguments.

        They are read when the device is done with the call; see `await_landing`.
        """
        watcher, tables = self.watcher, len(self.pool.page_tables)
        assert watcher is not None

        async def fly(*args: Any, fiber: Any) -> Any:
            process = CURRENT_INVOCATION.get()
            if process is None:  # it was boarded before the watching began
                return await function(*args, fiber=fiber)
            invocation, filled, returned, requests = None, FILLED.get(), [], []
            arguments = args[: len(args) - tables]
            try:
                requests = self.invocation_requests(process)
                invocation = watcher.invocation_begins(phase, requests)
            except Exception as error:
                watcher.fault(error)
                try:
                    watcher.invocation_unseen()
                except Exception as another:
                    watcher.fault(another)
            try:
                results = await function(*args, fiber=fiber)
            except BaseException as error:
                self.land(FinishedInvocation(invocation, phase, len(requests), arguments), error)
                raise
            try:
                if filled is not None:
                    returned = [bytes(mapped_of(array, filled)) for array in arguments]
                rows = len(requests)
                self.await_landing(
                    FinishedInvocation(
                        invocation, phase, rows, arguments, results, filled, returned
                    )
                )
            except Exception as error:
                watcher.fault(error)
            return results

        return fly

    @abstractmethod
    def await_landing(self, landing: FinishedInvocation) -> None:
        """Have `land` called once the engine itself has waited for the device.

        Until then the arrays must be kept, and hold what the device got.
        """

    def land(self, landing: FinishedInvocation, error: BaseException | None = None) -> None:
        """Tell the end of an invocation."""
        watcher = self.watcher
        assert watcher is not None
        invocation, phase, rows, arguments, results, filled, returned = landing
        if invocation is None:
            return  # its beginning could not be told
        arrays: dict[str, Any] = {}
        if watcher.check_contents:
            self._look_inside(arguments, phase)
        try:
            names = self.argument_names(phase, len(arguments))
            arrays = {
                name: values_of(array, filled) for name, array in zip(names, arguments, strict=True)
            }
            if filled:
                arrays["changed"] = changes(names, arguments, filled, returned, arrays)
            # More results than one: it chose among them on the device.
            if (watcher.likeliest or watcher.verifies) and len(results) == 1:
                scores = copy_scores(results[0], phase, rows, arrays)
                if watcher.likeliest:
                    arrays["scores"] = scores
                if watcher.verifies:
                    # Worked out when it is read, if that can be kept till then.
                    arrays["results"] = scores if scores.is_small else chosen_by(scores)
        except Exception as fault:
            watcher.fault(fault)
        try:
            watcher.invocation_ends(invocation, arrays, error)
        except Exception as fault:
            watcher.fault(fault)

    def _look_inside(self, arguments: Sequence[Any], phase: str) -> None:
        """Report pages that an invocation reads and that hold NaN or infinity, masked or not."""
        watcher = self.watcher
        assert watcher is not None
        try:
            names = self.argument_names(phase, len(arguments))
            (_, width), flat = values_of(arguments[names.index("block_tables")])
            requests = self.invocation_requests(CURRENT_INVOCATION.get())
            seen: set[int] = set()
            for row, request_id in enumerate(requests):
                # The lowest first: what spoils a row's own pages may stand in the padding page.
                for page in sorted(flat[row * width : (row + 1) * width]):
                    if page in seen or not 0 <= page < len(self.pool.attn_page_entries):
                        continue
                    seen.add(page)
                    found = self._slots(self._elements(page))
                    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
                    if len(bad):
                        self._tell(
                            "nonfinite", request_id=request_id, pages=[page], value=int(bad[0])
                        )
        except Exception as error:
            watcher.fault(error)

    def _slots(self, page: Any) -> Any:
        """Return the elements, or the bytes, of each slot of a page, [slots, elements]."""
        stride = int(self.cache.tokens_per_page)
        halves = 2 * int(self.native.model_params.transformer_block_count)
        halves *= len(self.pool.page_tables)
        return np.moveaxis(page.reshape(halves, stride, -1), 1, 0).reshape(stride, -1)

    def _copy_differs(self, source: int, target: int) -> int | None:
        """Return the first slot in which a copy is unlike its source, if that is looked at."""
        if self.watcher is None or not self.watcher.check_contents:
            return None
        one, other = (
            self._slots(np.frombuffer(self._bytes(page), np.uint8)) for page in (source, target)
        )
        unlike = np.flatnonzero((one != other).any(axis=1))
        return int(unlike[0]) if len(unlike) else None


def indices(pages: Iterable[Any]) -> list[int]:
    """Return the indices of the engine's pages."""
    return [page.index for page in pages]


def values_of(
    array: Any, filled: Mapping[int, Filled] | None = None
) -> tuple[tuple[int, ...], Any]:
    """Return the shape and a flat copy of a device array of integers, read in place."""
    return tuple(array.shape), mapped_of(array, filled).items


def objects_of(*classes: type) -> list[Any]:
    """Return every live object of these classes in the process."""
    return [thing for thing in gc.get_objects() if type(thing) in classes]


def _content(page: Any) -> PageContent:
    import hashlib

    numbers = page.astype(np.float64)
    valid = numbers[~np.isnan(numbers)]
    return PageContent(
        mean=float(valid.mean()) if valid.size else float("nan"),
        maximum=float(np.abs(valid).max()) if valid.size else float("nan"),
        nan_count=int(numbers.size - valid.size),
        digest=hashlib.sha256(page.tobytes()).hexdigest()[:16],
    )
