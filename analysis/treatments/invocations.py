"""Edits the arguments of the compiled model in place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION, values_of
from analysis.shortfin.treatment import LiveEngine, replaced
from analysis.shortfin.verify import note_edit

Ints = npt.NDArray[np.int64]


@dataclass
class PendingInvocation:
    """An invocation before its call, with its rows. Arrays are changed in place."""

    phase: str
    request_ids: list[str]
    """Request of each real row; further rows are padding."""
    arrays: dict[str, Ints]
    """tokens, seq_lens, start_positions (not for every prefill), block_tables."""
    process: Any
    """The engine's process that makes the call."""
    secretly: bool = False
    """Whether observers get the original arrays, not the changed ones."""
    put_back: bool = False
    """Whether the arrays are restored after the call."""
    later: dict[str, Ints] = field(default_factory=dict)
    """Values that overwrite arrays after the call."""
    skip: bool = False
    """Whether to skip the call and return the last results of its kind."""
    again: bool = False
    """Whether to call twice, and discard the first results."""
    other_arrays: dict[str, Ints] = field(default_factory=dict)
    """Changed arguments of that second call, by name."""
    hang_s: float = 0.0
    """Seconds by which the results are delayed."""
    afterwards: Callable[[], None] | None = None
    """Called after the call, before the engine continues."""

    @property
    def real(self) -> int:
        """Number of rows with a request."""
        return len(self.request_ids)


Editor = Callable[[PendingInvocation], None]


def edit_invocations(engine: LiveEngine, undo: ExitStack, editor: Editor) -> None:
    """Call `editor` with every invocation before its call.

    The arguments are changed in the engine's arrays, after its own transfers. Observers read the
    changed values, whether they were attached before or after.
    """
    service = engine.service
    assert service is not None
    probe = engine.probe or service.probe()
    tables = len(probe.pool.page_tables)
    _note_process(engine, undo)
    last: dict[tuple[str, int], Any] = {}
    active = True

    def deactivate() -> None:
        nonlocal active
        active = False

    undo.callback(deactivate)

    def edited(phase: str, size: int, function: Any) -> Any:
        async def call(*args: Any, fiber: Any) -> Any:
            process = CURRENT_INVOCATION.get()
            if not active or process is None:
                return await function(*args, fiber=fiber)
            await fiber.device(0)
            arguments = args[: len(args) - tables]
            names = probe.argument_names(phase, len(arguments))
            before = {n: _read(a) for n, a in zip(names, arguments, strict=True)}
            ids = probe.invocation_requests(process)
            arrays = {name: array.copy() for name, array in before.items()}
            pending = PendingInvocation(phase, ids, arrays, process)
            editor(pending)
            for name, array in zip(names, arguments, strict=True):
                if not np.array_equal(before[name], pending.arrays[name]):
                    _write(array, pending.arrays[name])
                    if not pending.secretly:
                        note_edit(array, pending.arrays[name])
            if pending.skip and (phase, size) in last:
                return last[phase, size]
            results = await function(*args, fiber=fiber)
            for name, array in zip(names, arguments, strict=True):
                if pending.put_back or name in pending.later:
                    _write(array, pending.later.get(name, before[name]))
            if pending.again:
                await fiber.device(0)
                others = {
                    place: _fresh(arguments[place], fiber, pending.other_arrays[name])
                    for place, name in enumerate(names)
                    if name in pending.other_arrays
                }
                once_more = [others.get(place, array) for place, array in enumerate(args)]
                results = await function(*once_more, fiber=fiber)
            if pending.hang_s:
                await asyncio.sleep(pending.hang_s)
            last[phase, size] = results
            if pending.afterwards is not None:
                pending.afterwards()
            return results

        return call

    for phase in ("prefill", "decode"):
        functions = getattr(service.native, f"{phase}_functions")
        for size, function in list(functions.items()):
            wrapper = edited(phase, size, function)
            functions[size] = wrapper
            undo.callback(_restore, functions, size, wrapper, function)


def _restore(functions: dict[int, Any], size: int, wrapper: Any, function: Any) -> None:
    # A wrapper that was wrapped again stays in place and only forwards.
    if functions[size] is wrapper:
        functions[size] = function


def _note_process(engine: LiveEngine, undo: ExitStack) -> None:
    """Record the process of each invocation of this engine, as an observer does."""

    @replaced(undo, engine.service.invocation_class(), "run")
    async def noted(run: Any, process: Any, *args: Any, **named: Any) -> Any:
        CURRENT_INVOCATION.set(process)
        return await run(process, *args, **named)


def _read(array: Any) -> Ints:
    shape, flat = values_of(array)
    return np.array(flat, dtype=np.int64).reshape(shape)


def _fresh(array: Any, fiber: Any, values: Ints) -> Any:
    """Return a device array like another one, with other values."""
    fresh = type(array).for_device(fiber.device(0), list(array.shape), array.dtype)
    _write(fresh, values)
    return fresh


def _write(array: Any, values: Ints) -> None:
    with array.map(write=True) as mapped:
        mapped.items = values.ravel().tolist()
