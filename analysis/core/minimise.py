"""Minimises what fails: the fewest items of a sequence, the smallest number.

`fails` is asked about candidates only, so the result of each function fails, whatever `fails` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def fewest(
    items: Sequence[Item],
    fails: Callable[[list[Item]], bool],
    remake: Callable[[list[Item], list[Item]], list[Item]] | None = None,
) -> list[Item]:
    """Remove items of a sequence that fails, many at a time and then one by one.

    No single item can be removed from the result (it is 1-minimal), and it is not empty.
    `remake(kept, items)` repairs what is left of `items`. Source: A. Zeller and R. Hildebrandt
    (2002), IEEE Transactions on Software Engineering 28:183 (ddmin, complements only).
    """
    items = list(items)
    size = max(1, len(items) // 2)
    while True:
        for at in range(0, len(items), size):
            kept = [*items[:at], *items[at + size :]]
            kept = kept if remake is None else remake(kept, items)
            if kept and fails(kept):
                items = kept
                size = min(size, max(1, len(items) // 2))
                break
        else:
            if size == 1:
                return items
            size = max(1, size // 2)


def smallest(least: int, known: int, fails: Callable[[int], bool]) -> int:
    """Return the smallest number from `least` to `known` that fails; `known` fails.

    By bisection: it is the smallest if every number above one that fails does, too.
    """
    passes = least - 1
    while known - passes > 1:
        middle = (passes + known) // 2
        if fails(middle):
            known = middle
        else:
            passes = middle
    return known
