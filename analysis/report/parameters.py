"""Parameters of a notebook: their types, and values that come as text."""

from __future__ import annotations

import ast
import json
from types import GenericAlias
from typing import Any, get_args, get_origin

from analysis.core.errors import CachelabError, shown

_SCALARS: dict[type, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}
"""Types of a parameter, and their names in a sentence: of one, and of several in a list."""


class ParameterError(CachelabError):
    """A value that is not of its parameter's type."""


def read_parameters(names: dict[str, Any]) -> None:
    """Check the parameters of a notebook in place, and read those that came as text.

    The first cell behind the parameters calls this with `globals()`: each annotated name is a
    parameter. `papermill -p` passes a list as text. Raises ParameterError.
    """
    for name, kind in names.get("__annotations__", {}).items():
        names[name] = conform(name, names[name], kind)


def declared(source: str) -> dict[str, Any]:
    """Return the names that a parameters cell assigns, with their types; Any without one."""
    kinds: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kinds[statement.target.id] = _annotated(statement.annotation)
        elif isinstance(statement, ast.Assign):
            names = (target for target in statement.targets if isinstance(target, ast.Name))
            kinds |= {name.id: Any for name in names}
    return kinds


def conform(name: str, value: Any, kind: Any) -> Any:
    """Return the value of a parameter as its type.

    A text is read as JSON where the type is none of text. A list can also be one value, or values
    with commas between them: `[4, 8]`, `4,8` and `4` are lists. Raises ParameterError.
    """
    given = value
    if get_origin(kind) is list:
        if isinstance(value, str):
            value = _parts(value)
        elif not isinstance(value, list | tuple):
            value = [value]
    try:
        return _read(value, kind)
    except (TypeError, ValueError, RecursionError):
        raise ParameterError(
            f"The notebook's parameter `{name}` must be {_words(kind)}, not {shown(given)}."
        ) from None


def _read(value: Any, kind: Any) -> Any:
    if get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            raise TypeError
        return [_read(part, item) for item in get_args(kind) for part in value]
    if kind not in _SCALARS:
        return value
    if isinstance(value, str) and kind is not str:
        value = json.loads(value)
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise TypeError
    return value


def _parts(text: str) -> list[Any]:
    try:
        if isinstance(parsed := json.loads(text), list):
            return parsed
    except (ValueError, RecursionError):
        pass
    return [part for part in (part.strip() for part in text.split(",")) if part]


def _annotated(annotation: ast.expr) -> Any:
    if isinstance(annotation, ast.Name):
        return next((kind for kind in _SCALARS if kind.__name__ == annotation.id), Any)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "list":
        return GenericAlias(list, (_annotated(annotation.slice),))
    return Any


def _words(kind: Any, several: bool = False) -> str:
    if get_origin(kind) is list:
        return f"{'lists' if several else 'a list'} of {_words(get_args(kind)[0], True)}"
    return _SCALARS.get(kind, ("a value", "values"))[several]
