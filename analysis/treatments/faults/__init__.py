"""Planted faults: known defects, by which it is seen whether the sanitizer sounds the alarm."""

from __future__ import annotations

from itertools import zip_longest

from analysis.treatments.faults.arguments import ARGUMENT_FAULTS
from analysis.treatments.faults.base import Fault, Injection
from analysis.treatments.faults.bytes import BYTES_FAULTS
from analysis.treatments.faults.cache import CACHE_FAULTS
from analysis.treatments.faults.execution import EXECUTION_FAULTS
from analysis.treatments.faults.invocations import INVOCATION_FAULTS
from analysis.treatments.faults.requests import REQUEST_FAULTS
from analysis.treatments.faults.results import RESULT_FAULTS
from analysis.treatments.faults.shape import SHAPE_FAULTS

FAMILIES: tuple[tuple[type[Fault], ...], ...] = (
    INVOCATION_FAULTS,
    CACHE_FAULTS,
    REQUEST_FAULTS,
    SHAPE_FAULTS,
    BYTES_FAULTS,
    RESULT_FAULTS,
    ARGUMENT_FAULTS,
    EXECUTION_FAULTS,
)
FAULTS: dict[str, type[Fault]] = {fault.name: fault for family in FAMILIES for fault in family}
"""By name, which begins with `fault:`."""
TRIES = 3
"""Faults that are planted in an arm, one engine each, until one finds something to inject."""


def controls(release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return the faults that a control may have, in turn from one family to the next."""
    families = [
        [fault.name for fault in family if fault.control and fault.fits(release, prefix_sharing)]
        for family in FAMILIES
    ]
    turns = zip_longest(*families)
    return tuple(name for turn in turns for name in turn if name is not None)


def tried(release: str, prefix_sharing: str, number: int) -> tuple[str, ...]:
    """Return the faults to try as an arm's control, in order, each of another family.

    The first is the `number`-th of `controls`, counted on from the last to the first again.
    """
    faults = controls(release, prefix_sharing)
    start = number % len(faults)
    by_family: dict[tuple[type[Fault], ...], str] = {}
    for name in (*faults[start:], *faults[:start]):
        by_family.setdefault(next(f for f in FAMILIES if FAULTS[name] in f), name)
    return tuple(by_family.values())[:TRIES]


__all__ = ["FAMILIES", "FAULTS", "TRIES", "Fault", "Injection", "controls", "tried"]
