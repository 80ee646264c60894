"""Reports the exception that ends a shortfin worker.

A worker's native loop passes an uncaught exception to the event loop's exception handler and then
aborts. The handler is wrapped without changing its behaviour. Its exceptions cannot propagate
through native code, so Python's hook prints them on `sys.stderr`, or on descriptor 2 with the
engine's other output while there is a listener.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

from analysis.core.wording import short_files
from analysis.shortfin.capture import report_fault

Listener = Callable[[Any, BaseException | None, str], bool]
"""Called with the worker, the exception and its traceback; returns whether it owns the worker."""

_lock = threading.Lock()
_listeners: list[Listener] = []
_silenced: weakref.WeakSet[Any] = weakref.WeakSet()
"""Event loops of engines that died and were closed."""
_MARK = "_cachelab_silenced"
"""Attribute of these loops: a collected loop's tasks report when it has left the set."""
_originals: tuple[Any, Any] | None = None


def listen(listener: Listener) -> None:
    """Call `listener` on the dying worker's thread, before the worker ends."""
    global _originals
    from _shortfin.asyncio_bridge import PyWorkerEventLoop

    with _lock:
        if _originals is None:
            _originals = PyWorkerEventLoop.call_exception_handler, sys.unraisablehook
            PyWorkerEventLoop.call_exception_handler = _handler(_originals[0])
            sys.unraisablehook = _hook(_originals[1])
        _listeners.append(listener)


def unlisten(listener: Listener) -> None:
    """Stop calling `listener`; the last one restores shortfin, unless a loop is silenced."""
    global _originals
    with _lock:
        if listener in _listeners:
            _listeners.remove(listener)
        if not _listeners and not len(_silenced) and _originals is not None:
            from _shortfin.asyncio_bridge import PyWorkerEventLoop

            PyWorkerEventLoop.call_exception_handler, sys.unraisablehook = _originals
            _originals = None


def silence(owns: Callable[[Any], bool]) -> None:
    """Suppress the output of the workers of a closed engine that died.

    Their remaining objects raise errors at arbitrary times until the process ends.
    """
    from _shortfin.asyncio_bridge import PyWorkerEventLoop

    loops = [thing for thing in gc.get_objects() if type(thing) is PyWorkerEventLoop]
    for loop in loops:
        if owns(loop._worker):
            setattr(loop, _MARK, True)
            _silenced.add(loop)


def _handler(original: Any) -> Any:
    def call_exception_handler(self: Any, context: dict[str, Any]) -> Any:
        claimed = False
        try:
            error = context.get("exception")
            cause = error if isinstance(error, BaseException) else None
            lines = traceback.format_exception(cause) if cause else [str(context)]
            text = short_files("".join(lines))
            for listener in tuple(_listeners):
                try:
                    claimed = listener(self._worker, cause, text) or claimed
                except Exception as mistake:
                    report_fault("A listener for worker crashes", mistake)
        except Exception as mistake:
            report_fault("Reading how a worker died", mistake)
        if claimed or not getattr(self, _MARK, False):
            return original(self, context)
        with contextlib.suppress(Exception):  # it only raises
            original(self, context)

    return call_exception_handler


def _hook(original: Any) -> Any:
    def unraisablehook(unraisable: Any) -> None:
        if getattr(unraisable.object, "__name__", "") != "call_exception_handler":
            original(unraisable)
            return
        lines = traceback.format_exception(unraisable.exc_value)
        with contextlib.suppress(OSError):
            os.write(2, "".join(lines).encode())

    return unraisablehook
