"""Changes of a live server for treatments and faults, common to all generations.

Each generation has a module `<generation>_edits` with the functions of its capabilities;
`Service.edits` is that module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION
from analysis.shortfin.treatment import replace_attribute, replaced

NO_PAGE = "There was no free page for the request's next tokens, and none could be evicted."
"""The error of a request that fails because it cannot grow."""


@dataclass
class Results:
    """The logits of an invocation before they are passed to its requests."""

    phase: str
    request_ids: list[str]
    """Request of each real row; further rows are padding."""
    logits: Any
    """[batch, tokens, vocabulary]"""
    instead: dict[int, tuple[Any, int, int]] = field(default_factory=dict)
    """Replacement for a row: array, row and shift of position."""

    @property
    def shape(self) -> Any:
        """The shape of the logits."""
        return self.logits.shape

    def view(self, row: int, *place: Any) -> Any:
        """Return the logits for a row."""
        array, row, shift = self.instead.get(row, (self.logits, row, 0))
        return array.view(row, *((place[0] + shift, *place[1:]) if place else ()))


def replace_functions(
    functions: dict[int, Any], undo: ExitStack, wrap: Callable[[Any], Any]
) -> None:
    """Replace the compiled functions of a phase, by batch size, until the stack is closed."""
    for size, function in list(functions.items()):
        functions[size] = wrap(function)
        undo.callback(functions.__setitem__, size, function)


def decode_edit(edit: Callable[[Any, Callable[[Any], None]], None], submit: Any) -> Any:
    """Return a `submit` that passes each decode of a request to `edit`, with the original."""

    def submitted(request: Any) -> None:  # the engine uses this parameter name
        # Messages to a scheduler have a request, too, but no phase.
        phase = getattr(request, "phase", None)
        if phase is not None and phase.name == "DECODE" and request.rid is not None:
            edit(request, submit)
        else:
            submit(request)

    return submitted


# -- capability `request-list` --


class _Muted:
    """Replaces a request, and does not wake it when it is done."""

    def __init__(self, request: Any) -> None:
        self._request, self.done = request, self

    def set_success(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def mute(requests: list[Any], row: int) -> None:
    """Prevent the end of an invocation from waking one of its requests."""
    requests[row] = _Muted(requests[row])


def complete(request: Any, logits: Any) -> None:
    """Wake a request with the logits of its step."""
    request.result_logits = logits
    request.done.set_success()


def around_decodes(
    service: Any,
    undo: ExitStack,
    started: Callable[[list[Any]], None],
    finished: Callable[[list[Any]], Any],
    results: dict[str, Any],
) -> None:
    """Call `started` before and await `finished` after every decode, with its requests.

    `results` is updated with the last logits of each request.
    """

    @replaced(undo, service.invocation_class(), "run")
    async def running(run: Any, process: Any) -> None:
        await run(process)
        for request in process.exec_requests:
            if request.result_logits is not None:
                results[request.rid] = request.result_logits

    def wrap(function: Any) -> Any:
        async def call(*args: Any, fiber: Any) -> Any:
            process = CURRENT_INVOCATION.get()
            requests = [] if process is None else process.exec_requests
            started(requests)
            outcome = await function(*args, fiber=fiber)
            await finished(requests)
            return outcome

        return call

    replace_functions(service.native.decode_functions, undo, wrap)


def edit_beam_answers(
    undo: ExitStack,
    task_class: type,
    request_of: Callable[[Any], str],
    edit: Callable[[str, list[int]], list[int]],
) -> None:
    """Call `edit` with the tokens of every complete answer of one beam, nested in a list or not."""

    @replaced(undo, task_class, "run")
    async def running(run: Any, task: Any) -> None:
        await run(task)
        tokens = task.result_token_ids
        nested = bool(tokens) and isinstance(tokens[0], list)
        flat = tokens[0] if nested else tokens
        changed = edit(request_of(task), flat)
        if changed is not flat:
            task.result_token_ids = [changed] if nested else changed


# -- capability `worker-pool` --


def share_one_worker(service: Any, undo: ExitStack) -> None:
    """Run the processes of all requests on one worker."""
    fibers, fiber = service.native.main_fiber_pool, service.native.main_fiber

    async def get() -> tuple[None, Any]:
        return None, fiber

    replace_attribute(undo, fibers, "get", get)

    # Workers taken before are returned later, so this one accepts both kinds and stays.
    @replaced(undo, fibers, "return_fiber")
    def returned(give_back: Any, numbers: Any) -> None:
        listed = numbers if isinstance(numbers, list) else [numbers]
        give_back([n for n in listed if n is not None])
