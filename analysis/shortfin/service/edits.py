"""Changes of a live server for treatments and faults, common to all generations.

Each generation has a module `<generation>_edits` with the functions of its capabilities;
`Service.edits` is that module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

PHASES = ("prefill", "decode")
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
        if getattr(request, "rid", None) is not None and request.phase.name == "DECODE":
            edit(request, submit)
        else:
            submit(request)

    return submitted
