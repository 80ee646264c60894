"""Reports the arguments and results of each call of the compiled model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from analysis.model import elements
from analysis.shortfin.cache.base import ProbeBase
from analysis.shortfin.hooks import Hooks
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

CURRENT_INVOCATION: ContextVar[Any] = ContextVar("CURRENT_INVOCATION", default=None)
"""The engine's process that calls the compiled model."""


class FinishedInvocation(NamedTuple):
    """An invocation after its call returned; the device may not have finished."""

    invocation: Any
    """The observer's value for the start; None if that failed."""
    phase: str
    rows: int
    """Number of rows with a request."""
    arguments: Sequence[Any]
    """The arguments before the page tables."""
    results: Sequence[Any] = ()
    filled: Mapping[int, Filled] | None = None
    """The values that the arguments were filled with; None if not recorded."""
    returned: Sequence[bytes] = ()
    """The bytes of the arguments after the call returned."""


class InvocationProbe(ProbeBase):
    """Reports invocations, and reads their pages."""

    @property
    def dtype(self) -> str:
        """Name of the data type of the page tables."""
        return str(self.pool.page_tables[0].dtype)

    def bytes_of(self, page: int) -> bytes:
        """Return a page's bytes on all devices."""
        return b"".join(raw(table.view(page)) for table in self.pool.page_tables)

    def elements(self, page: int) -> Any:
        """Return a page's elements. Raises EngineError for a type that cannot be read."""
        return elements.decode(self.bytes_of(page), self.dtype)

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
        """Record that the engine's process of this task calls the model next."""
        CURRENT_INVOCATION.set(process)
        FILLED.set({} if self.observer is not None and self.observer.verifies else None)

    def emit_chosen(self, request_id: str, logits: bytes, token: int | None) -> None:
        """Report a request's next token and the logits it was chosen from."""
        assert self.observer is not None
        self.observer.at_token("chosen", request_id, token, noted_logits(logits))

    def _hook_filling(self, hooks: Hooks) -> None:
        """Record the values that the engine sends to the device."""
        fault = hooks.observer.fault

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

    def hook_invocations(self, hooks: Hooks) -> None:
        self._hook_filling(hooks)
        for phase in ("prefill", "decode"):
            functions = getattr(self.native, f"{phase}_functions")
            for size, function in list(functions.items()):
                hooks.item(functions, size, self._tap(phase, function))

    def _tap(self, phase: str, function: Any) -> Any:
        """Return a function that calls the compiled model and reports its arguments.

        They are read after the device has finished the call; see `returned_invocation`.
        """
        observer, tables = self.observer, len(self.pool.page_tables)
        assert observer is not None

        async def invoke(*args: Any, fiber: Any) -> Any:
            process = CURRENT_INVOCATION.get()
            if process is None:  # the process began before the probe was attached
                return await function(*args, fiber=fiber)
            invocation, filled, returned, requests = None, FILLED.get(), [], []
            arguments = args[: len(args) - tables]
            try:
                requests = self.invocation_requests(process)
                invocation = observer.invocation_begins(phase, requests)
            except Exception as error:
                observer.fault(error)
                try:
                    observer.invocation_unseen()
                except Exception as another:
                    observer.fault(another)
            try:
                results = await function(*args, fiber=fiber)
            except BaseException as error:
                self.finish(FinishedInvocation(invocation, phase, len(requests), arguments), error)
                raise
            try:
                if filled is not None:
                    returned = [bytes(mapped_of(array, filled)) for array in arguments]
                rows = len(requests)
                self.returned_invocation(
                    FinishedInvocation(
                        invocation, phase, rows, arguments, results, filled, returned
                    )
                )
            except Exception as error:
                observer.fault(error)
            return results

        return invoke

    @abstractmethod
    def returned_invocation(self, finished: FinishedInvocation) -> None:
        """Call `finish` after the engine has waited for the device.

        Until then the arrays must be kept unchanged.
        """

    def finish(self, finished: FinishedInvocation, error: BaseException | None = None) -> None:
        """Report the end of an invocation, after the device has finished it."""
        observer = self.observer
        assert observer is not None
        invocation, phase, rows, arguments, results, filled, returned = finished
        if invocation is None:
            return  # its start was not reported
        arrays: dict[str, Any] = {}
        if observer.check_contents:
            self._check_contents(arguments, phase)
        try:
            names = self.argument_names(phase, len(arguments))
            arrays = {
                name: values_of(array, filled) for name, array in zip(names, arguments, strict=True)
            }
            if filled:
                arrays["changed"] = changes(names, arguments, filled, returned, arrays)
            # Several results: the device selected the tokens.
            if (observer.likeliest or observer.verifies) and len(results) == 1:
                scores = copy_scores(results[0], phase, rows, arrays)
                if observer.likeliest:
                    arrays["scores"] = scores
                if observer.verifies:
                    # Computed when it is read, if the data can be kept until then.
                    arrays["results"] = scores if scores.is_small else chosen_by(scores)
        except Exception as fault:
            observer.fault(fault)
        try:
            observer.invocation_ends(invocation, arrays, error)
        except Exception as fault:
            observer.fault(fault)

    def _check_contents(self, arguments: Sequence[Any], phase: str) -> None:
        """Report pages of an invocation that hold NaN or infinity, including masked slots."""
        observer = self.observer
        assert observer is not None
        try:
            names = self.argument_names(phase, len(arguments))
            (_, width), flat = values_of(arguments[names.index("block_tables")])
            requests = self.invocation_requests(CURRENT_INVOCATION.get())
            seen: set[int] = set()
            for row, request_id in enumerate(requests):
                # Lowest page first: a NaN in the row's own pages may come from the padding page.
                for page in sorted(flat[row * width : (row + 1) * width]):
                    if page in seen or not 0 <= page < len(self.pool.attn_page_entries):
                        continue
                    seen.add(page)
                    found = self._slots(self.elements(page))
                    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
                    if len(bad):
                        self.emit(
                            "nonfinite", request_id=request_id, pages=[page], value=int(bad[0])
                        )
        except Exception as error:
            observer.fault(error)

    def _slots(self, page: Any) -> Any:
        """Return the elements or bytes of each slot of a page, [slots, elements]."""
        stride = int(self.cache.tokens_per_page)
        halves = 2 * int(self.native.model_params.transformer_block_count)
        halves *= len(self.pool.page_tables)
        return np.moveaxis(page.reshape(halves, stride, -1), 1, 0).reshape(stride, -1)

    def copy_differs(self, source: int, target: int) -> int | None:
        """Return the first slot in which a copy differs from its source, if it is checked."""
        if self.observer is None or not self.observer.check_contents:
            return None
        one, other = (
            self._slots(np.frombuffer(self.bytes_of(page), np.uint8)) for page in (source, target)
        )
        unlike = np.flatnonzero((one != other).any(axis=1))
        return int(unlike[0]) if len(unlike) else None


def values_of(
    array: Any, filled: Mapping[int, Filled] | None = None
) -> tuple[tuple[int, ...], Any]:
    """Return the shape and a flat copy of a device array of integers, read in place."""
    return tuple(array.shape), mapped_of(array, filled).items
