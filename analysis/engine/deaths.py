"""Every exception that ends a shortfin worker passes one place: this listens there.

The native loop of a worker hands an uncaught exception to the event loop's exception handler and
then aborts; nothing else in the process hears of it. Listening leaves that as it is.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

Listener = Callable[[str, BaseException | None, str], None]
"""Called with the worker's name, the exception, and its formatted traceback."""

_lock = threading.Lock()
_listeners: list[Listener] = []
_original: Any = None


def listen(listener: Listener) -> None:
    """Have `listener` called, on the dying worker's thread, before the worker ends."""
    global _original
    from _shortfin.asyncio_bridge import PyWorkerEventLoop

    with _lock:
        if not _listeners:
            _original = PyWorkerEventLoop.call_exception_handler
            PyWorkerEventLoop.call_exception_handler = _handler(_original)
        _listeners.append(listener)


def unlisten(listener: Listener) -> None:
    """Stop calling `listener`; the last one leaves shortfin as it was."""
    global _original
    with _lock:
        if listener not in _listeners:
            return
        _listeners.remove(listener)
        if not _listeners:
            from _shortfin.asyncio_bridge import PyWorkerEventLoop

            PyWorkerEventLoop.call_exception_handler = _original
            _original = None


def _handler(original: Any) -> Any:
    def call_exception_handler(self: Any, context: dict[str, Any]) -> Any:
        error = context.get("exception")
        if isinstance(error, BaseException):
            text = "".join(traceback.format_exception(error))
        else:
            text = str(context)
        for listener in list(_listeners):
            listener(str(self._worker), error if isinstance(error, BaseException) else None, text)
        return original(self, context)

    return call_exception_handler
