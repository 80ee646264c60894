"""Changing what the compiled model is called with, in the very arrays that it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION, values_of
from analysis.shortfin.treatment import replace_attribute
from analysis.shortfin.verify import note_edit

if TYPE_CHECKING:
    from analysis.engine import Engine

Ints = npt.NDArray[np.int64]


@dataclass
class PendingInvocation:
    """An invocation about to start. Arrays are changed in place."""

    phase: str
    request_ids: list[str]
    """Of each row that carries one; the rest is padding."""
    arrays: dict[str, Ints]
    """tokens, seq_lens, start_positions (not of every prefill), block_tables."""
    process: Any
    """The engine's own process that is calling."""
    secretly: bool = False
    """Set to have nobody told that the arrays were changed after they had been filled."""
    put_back: bool = False
    """Set to have the arrays as they were again when the call has returned."""
    later: dict[str, Ints] = field(default_factory=dict)
    """Set to have arrays overwritten with these when the call has returned."""
    skip: bool = False
    """Set to have the call not made, and the last results of its kind given instead."""
    again: bool = False
    """Set to have the call made once more; the first one's results are thrown away."""
    other_arrays: dict[str, Ints] = field(default_factory=dict)
    """Arguments that are to be others then, by name."""
    hang_s: float = 0.0
    """For how long the results are kept from the engine."""
    afterwards: Callable[[], None] | None = None
    """Set to have something done when the call was made, before the engine goes on."""

    def row(self, request_id: str) -> int:
        """Return the row of a request; ValueError if it has none."""
        return self.request_ids.index(request_id)

    @property
    def real(self) -> int:
        """Rows that carry a request."""
        return len(self.request_ids)


Editor = Callable[[PendingInvocation], None]


def edit_invocations(engine: Engine, undo: ExitStack, editor: Editor) -> None:
    """Have every invocation changed by `editor` before it starts.

    Its arguments are changed in the arrays that the engine made, when its own transfers to them
    are done: an observer that reads them sees the changed ones, whichever came first.
    """
    adapter = engine.service
    assert adapter is not None
    probe = engine.probe or adapter.probe()
    service, tables = adapter.native, len(probe.pool.page_tables)
    _note_process(engine, undo)
    last: dict[tuple[str, int], Any] = {}
    on = [True]
    undo.callback(lambda: on.__setitem__(0, False))

    def edited(phase: str, size: int, function: Any) -> Any:
        async def fly(*args: Any, fiber: Any) -> Any:
            process = CURRENT_INVOCATION.get()
            if not on[0] or process is None:
                return await function(*args, fiber=fiber)
            await fiber.device(0)
            arguments = args[: len(args) - tables]
            names = probe.argument_names(phase, len(arguments))
            before = {n: _read(a) for n, a in zip(names, arguments, strict=True)}
            ids = probe.invocation_requests(process)
            pending = PendingInvocation(
                phase, ids, {n: a.copy() for n, a in before.items()}, process
            )
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

        return fly

    for phase in ("prefill", "decode"):
        functions = getattr(service, f"{phase}_functions")
        for size, function in list(functions.items()):
            wrapper = edited(phase, size, function)
            functions[size] = wrapper
            undo.callback(_put_back, functions, size, wrapper, function)


def _put_back(functions: dict[int, Any], size: int, wrapper: Any, function: Any) -> None:
    # One that was wrapped again stays where it is and only passes on.
    if functions[size] is wrapper:
        functions[size] = function


def _note_process(engine: Engine, undo: ExitStack) -> None:
    """Have the invocations of this engine know the process that calls, as an observer has too."""
    assert engine.service is not None
    invocation = engine.service.invocation_class()
    run = invocation.run

    async def noted(process: Any, *args: Any, **named: Any) -> Any:
        CURRENT_INVOCATION.set(process)
        return await run(process, *args, **named)

    replace_attribute(undo, invocation, "run", noted)


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
