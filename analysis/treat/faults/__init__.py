"""Planted faults: known defects, by which it is seen whether the sanitizer sounds the alarm."""

from __future__ import annotations

from itertools import zip_longest

from analysis.treat.faults.base import Fault, Struck
from analysis.treat.faults.cache import CACHE_FAULTS
from analysis.treat.faults.flights import FLIGHT_FAULTS
from analysis.treat.faults.requests import REQUEST_FAULTS

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault for fault in (*FLIGHT_FAULTS, *CACHE_FAULTS, *REQUEST_FAULTS)
}
"""By name, which begins with `fault:`."""


def controls(release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return the faults that a control may have, in turn from one family to the next."""
    families = [
        [f.name for f in family if f.control and f.fits(release, prefix_sharing)]
        for family in (FLIGHT_FAULTS, CACHE_FAULTS, REQUEST_FAULTS)
    ]
    turns = zip_longest(*families)
    return tuple(name for turn in turns for name in turn if name is not None)


__all__ = ["FAULTS", "Fault", "Struck", "controls"]
