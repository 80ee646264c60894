"""Faults by name and by family, and those that the controls of a sweep use."""

from __future__ import annotations

from importlib import import_module
from itertools import groupby, zip_longest

from analysis.treatments.faults.base import FAULTS, Fault, Injection

# Each module is a family. Controls alternate between families in this order.
for _module in ("invocations", "cache", "requests", "shape", "bytes", "results", "arguments",
                "execution"):  # fmt: skip
    import_module(f"{__name__}.{_module}")

FAMILIES: tuple[tuple[type[Fault], ...], ...] = tuple(
    tuple(group) for _, group in groupby(FAULTS.values(), key=lambda kind: kind.family)
)
TRIES = 3
"""Most faults tried in an arm, one engine each, until one could be injected."""


def family(name: str) -> tuple[type[Fault], ...]:
    """Return the faults of a family, such as `cache`."""
    return tuple(kind for kind in FAULTS.values() if kind.family == name)


def controls(release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return the faults that controls use, alternating between families."""
    families = [
        [kind.name for kind in members if kind.control and kind.fits(release, prefix_sharing)]
        for members in FAMILIES
    ]
    turns = zip_longest(*families)
    return tuple(name for turn in turns for name in turn if name is not None)


def tried(release: str, prefix_sharing: str, number: int) -> tuple[str, ...]:
    """Return the faults to try as an arm's control, in order, each from another family.

    The first is number `number` of `controls`, counted cyclically.
    """
    faults = controls(release, prefix_sharing)
    start = number % len(faults)
    by_family: dict[str, str] = {}
    for name in (*faults[start:], *faults[:start]):
        by_family.setdefault(FAULTS[name].family, name)
    return tuple(by_family.values())[:TRIES]


__all__ = ["FAMILIES", "FAULTS", "TRIES", "Fault", "Injection", "controls", "family", "tried"]
