"""Planted faults: known defects, by which it is seen whether the sanitizer sounds the alarm."""

from analysis.treat.faults.base import Fault, Struck
from analysis.treat.faults.cache import CACHE_FAULTS
from analysis.treat.faults.execution import EXECUTION_FAULTS
from analysis.treat.faults.flights import FLIGHT_FAULTS
from analysis.treat.faults.requests import REQUEST_FAULTS

_FAMILIES: tuple[tuple[type[Fault], ...], ...] = (
    FLIGHT_FAULTS, CACHE_FAULTS, REQUEST_FAULTS, EXECUTION_FAULTS,
)  # fmt: skip
FAULTS: dict[str, type[Fault]] = {fault.name: fault for family in _FAMILIES for fault in family}
"""By name, which begins with `fault:`."""

__all__ = ["EXECUTION_FAULTS", "FAULTS", "Fault", "Struck"]
