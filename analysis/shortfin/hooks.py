"""Hooks on live objects: called around the engine's code, and removed on exit."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from analysis.core.errors import EngineError
from analysis.shortfin.capture import report_fault
from analysis.shortfin.port import CacheObserver

Undo = Callable[[], None]
_NOTHING = object()


Wrap = Callable[[Any], Any]
"""Returns the replacement of an attribute from its value."""


class _Wrapped:
    """An attribute with wrappers that are removed in any order, because engines share classes."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.before, self.base = vars(owner).get(name, _NOTHING), getattr(owner, name)
        self.wraps: list[Wrap] = []
        self.top: Any = None

    def is_on_top(self) -> bool:
        """Return whether the attribute still has the value that was set here."""
        return vars(self.owner).get(self.name, _NOTHING) is self.top

    def renew(self) -> None:
        """Build the wrappers again from the first value."""
        if not self.wraps:
            _put_back(self.owner, self.name, self.before)
            return
        self.top = self.base
        for wrap in self.wraps:
            self.top = wrap(self.top)
        setattr(self.owner, self.name, self.top)


_wrapping = threading.Lock()
_wrapped: dict[tuple[int, str], list[_Wrapped]] = {}
"""Wrapped attributes by owner id and name; several if other code replaced the attribute."""


def _put_back(owner: Any, name: str, value: Any) -> None:
    if value is _NOTHING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def wrap_attribute(owner: Any, name: str, wrap: Wrap) -> Undo:
    """Replace an attribute by `wrap(attribute)`; return a function that removes the wrapper."""
    key = id(owner), name
    with _wrapping:
        there = _wrapped.setdefault(key, [])
        if not there or not there[-1].is_on_top():
            there.append(_Wrapped(owner, name))
        mine = there[-1]
        mine.wraps.append(wrap)
        mine.top = wrap(getattr(owner, name))
        setattr(owner, name, mine.top)

    def undo() -> None:
        with _wrapping:
            mine.wraps.remove(wrap)
            _tidy(key)

    return undo


def replace_attribute(owner: Any, name: str, value: Any) -> Undo:
    """Set an attribute of an object or a class; return a function that restores it."""
    before = vars(owner).get(name, _NOTHING)
    setattr(owner, name, value)

    def undo() -> None:
        with _wrapping:
            _put_back(owner, name, before)
            _tidy((id(owner), name))

    return undo


def _tidy(key: tuple[int, str]) -> None:
    """Remove unused wrappers, if they are on top."""
    there = _wrapped.get(key, [])
    while there and there[-1].is_on_top():
        there[-1].renew()
        if there[-1].wraps:
            return
        there.pop()
    if not there:
        _wrapped.pop(key, None)


class Hooks:
    """Replaced attributes and items, restored in reverse order by `restore`."""

    def __init__(self, observer: CacheObserver) -> None:
        self.observer = observer
        self._undo: list[Undo] = []

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of an object or a class until `restore`."""
        self._undo.append(replace_attribute(owner, name, value))

    def wrap(self, owner: Any, name: str, wrap: Wrap) -> None:
        """Replace an attribute by `wrap(attribute)` until `restore`."""
        self._undo.append(wrap_attribute(owner, name, wrap))

    def item(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an item of a mapping until `restore`."""
        before = mapping[key]
        mapping[key] = value
        self._undo.append(lambda: mapping.__setitem__(key, before))

    def also(self, undo: Undo) -> None:
        """Call `undo` at `restore`."""
        self._undo.append(undo)

    def around(
        self,
        owner: Any,
        name: str,
        operation: str | None = None,
        *,
        applies: Callable[..., bool] | None = None,
        request_of: Callable[..., str | None] | None = None,
        before: Callable[..., Any] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        """Observe a method as one operation of the cache, named or not.

        `applies(*args)` returns whether the call belongs to this engine (False if it raises),
        `request_of(*args)` the request of the call, and `before(*args)` the state that is passed to
        `after(state, result, error, *args)`. Their errors go to the observer, not into the call.
        """
        observer = self.observer
        begin, end, fault = observer.begin, observer.end, observer.fault

        def finish(state: Any, result: Any, error: Any, args: Any, kwargs: Any) -> None:
            if after is not None:
                try:
                    after(state, result, error, *args, **kwargs)
                except Exception as mistake:
                    fault(mistake)
            try:
                end(error)
            except Exception as mistake:
                fault(mistake)

        # Hot path.
        def wrap(original: Any) -> Any:
            @functools.wraps(original)
            def observed(*args: Any, **kwargs: Any) -> Any:
                ours, request, state = applies is None, None, None
                try:
                    if applies is not None:
                        ours = applies(*args, **kwargs)
                    if ours and request_of is not None:
                        request = request_of(*args, **kwargs)
                except Exception as error:
                    fault(error)
                if not ours:
                    return original(*args, **kwargs)
                try:
                    begin(operation, request)
                except Exception as error:
                    fault(error)
                    return original(*args, **kwargs)
                if before is not None:
                    try:
                        state = before(*args, **kwargs)
                    except Exception as error:
                        fault(error)
                try:
                    result = original(*args, **kwargs)
                except BaseException as error:
                    finish(state, None, error, args, kwargs)
                    raise
                finish(state, result, None, args, kwargs)
                return result

            return observed

        self.wrap(owner, name, wrap)

    def around_task(
        self,
        owner: type,
        name: str,
        *,
        before: Callable[..., Any],
        after: Callable[..., None] | None = None,
    ) -> None:
        """Observe a coroutine method of a class: `before(self)` when it starts, `after` at its end.

        `before` runs in the task's context, so context variables that it sets are valid in the
        whole task. `after(state, self)` also runs when the task fails.
        """
        observer = self.observer

        def wrap(original: Any) -> Any:
            @functools.wraps(original)
            async def observed(process: Any, *args: Any, **kwargs: Any) -> Any:
                state = None
                try:
                    state = before(process)
                except Exception as error:
                    observer.fault(error)
                try:
                    return await original(process, *args, **kwargs)
                finally:
                    if after is not None:
                        try:
                            after(state, process)
                        except Exception as error:
                            observer.fault(error)

            return observed

        self.wrap(owner, name, wrap)

    def restore(self) -> None:
        """Restore everything; an error with one item does not prevent the rest."""
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                self.observer.fault(error)


@dataclass
class _Block:
    what: str
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    ended: bool = False


class Changes:
    """Changes of one live engine, each for the duration of a block; undone in reverse order.

    The changes of a block that ends before a later block are kept until the later block ends.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    @contextlib.contextmanager
    def block(self, what: str) -> Iterator[contextlib.ExitStack]:
        """Yield a stack for undo callbacks. Raises EngineError if blocks end out of order."""
        block = _Block(what)
        self._blocks.append(block)
        try:
            yield block.undo
        finally:
            block.ended = True
            self._undo()
            if block in self._blocks:
                later = self._blocks[-1].what
                raise EngineError(
                    f"{what} was ended before {later}, which began later, so it stays until that"
                    " ends. End blocks in reverse order."
                )

    def undo_all(self) -> None:
        """Undo the changes of all open blocks, at the end of the engine."""
        for block in self._blocks:
            block.ended = True
        self._undo()

    def _undo(self) -> None:
        while self._blocks and self._blocks[-1].ended:
            block = self._blocks.pop()
            try:
                block.undo.close()
            except Exception as error:
                report_fault(f"Undoing {block.what}", error)
