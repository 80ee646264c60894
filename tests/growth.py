"""How much is kept by an object of this package, so that a test can see what grows for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

_CONTAINERS = (list, tuple, set, frozenset, deque)


def kept(thing: Any, *, without: Iterable[str] = ()) -> dict[str, int]:
    """Return how many elements each container has that can be reached from an object.

    By the path to it; what is below the elements of a container counts together. Attributes
    `without` are not followed.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    left = set(without)
    waiting: list[tuple[str, Any]] = [("", thing)]
    while waiting:
        path, one = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | type(None)):
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            found[path] = found.get(path, 0) + len(one)
            waiting += [(f"{path}[]", part) for pair in one.items() for part in pair]
        elif isinstance(one, _CONTAINERS):
            found[path] = found.get(path, 0) + len(one)
            waiting += [(f"{path}[]", part) for part in one]
        elif type(one).__module__.startswith("analysis"):
            attributes = getattr(one, "__dict__", None) or {
                name: getattr(one, name) for name in getattr(type(one), "__slots__", ())
            }
            waiting += [(f"{path}.{n}", part) for n, part in attributes.items() if n not in left]
    return found


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return what has far more elements than before: thrice the requests make it twice as large."""
    pairs = {path: (before.get(path, 0), count) for path, count in after.items()}
    return {path: (was, now) for path, (was, now) in pairs.items() if now > 2 * was + 20}
