"""Options of several commands, and values with parts: `1,2,4` and `NAME=VALUE`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from analysis.core.errors import CachelabError, printable, shown

HipTarget = Annotated[
    str | None, typer.Option(help="gfx target to compile for on amdgpu [default: ask]")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, an object a line")]
Model = Annotated[
    Path | None,
    typer.Option(
        help="a model's directory, or an imported model's name [default: the counting model]"
    ),
]
RequestId = Annotated[
    str | None, typer.Argument(help="a request's id, such as r0003 [default: the first failed]")
]
TrialId = Annotated[
    str | None, typer.Option(help="its trial, where several have a request of that name")
]


class OptionError(CachelabError):
    """An option's value cannot be read."""


def texts(value: str) -> tuple[str, ...]:
    """Return the parts of `a,b,c`, without spaces around them."""
    return tuple(part for part in (p.strip() for p in value.split(",")) if part)


def some(flag: str, value: str) -> tuple[str, ...]:
    """Return the parts of `a,b,c`. Raises OptionError if there is none."""
    if not (parts := texts(value)):
        raise OptionError(f"`{flag}` needs at least one value.")
    return parts


def numbers(flag: str, value: str) -> tuple[int, ...]:
    """Return the whole numbers of `1,2,4`."""
    try:
        return tuple(int(part) for part in texts(value))
    except ValueError:
        raise OptionError(
            f"`{flag}` takes whole numbers such as 1,2,4, not {shown(value)}."
        ) from None


def sets(value: str) -> tuple[tuple[str, ...], ...]:
    """Return the sets of `none,a,a+b`; `none` is the empty one."""
    return tuple(
        () if part == "none" else tuple(name for name in part.split("+") if name)
        for part in texts(value)
    )


def one_set(value: str) -> tuple[str, ...]:
    """Return the names of one set, `a+b`. Raises OptionError for several sets."""
    found = sets(value)
    if len(found) > 1:
        raise OptionError(
            f"`--treatments` takes one set here, not {len(found)}: join the names with +, as in"
            f" {'+'.join(texts(value))}."
        )
    return found[0] if found else ()


def emphasise(text: str, stream: TextIO, **style: Any) -> None:
    """Write a line in a style of `typer.style` if the stream is a terminal, else as it is."""
    if stream.isatty() and "NO_COLOR" not in os.environ:
        # Around the stream that escapes control sequences.
        raw: TextIO = getattr(stream, "raw", stream)
        raw.write(typer.style(printable(text), **style) + "\n")
    else:
        stream.write(text + "\n")


def named(flag: str, values: Sequence[str]) -> dict[str, Any]:
    """Return `NAME=VALUE` pairs; a value is read as JSON where it is JSON, else as text."""
    pairs: dict[str, Any] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not name.strip() or not separator:
            raise OptionError(f"`{flag}` takes NAME=VALUE, not {shown(value)}.")
        try:
            pairs[name.strip()] = json.loads(text, parse_constant=_no_json)
        except (ValueError, RecursionError):
            pairs[name.strip()] = text
    return pairs


def axes(flag: str, values: Sequence[str]) -> dict[str, list[Any]]:
    """Return `NAME=VALUE,VALUE` with a list of values each; a JSON list is read as one."""
    pairs = named(flag, values)
    for name, value in pairs.items():
        if isinstance(value, str):
            pairs[name] = [v for part in texts(value) for v in named(flag, [f"v={part}"]).values()]
        elif not isinstance(value, list):
            pairs[name] = [value]
    return pairs


def _no_json(name: str) -> None:
    """Refuse NaN and Infinity, which are no JSON: a run's plan must equal itself."""
    raise ValueError(name)
