"""Planted faults: known defects, by which it is seen whether the sanitizer sounds the alarm."""

from analysis.treat.faults.arguments import ARGUMENT_FAULTS
from analysis.treat.faults.base import Fault, Struck
from analysis.treat.faults.bytes import BYTES_FAULTS
from analysis.treat.faults.cache import CACHE_FAULTS
from analysis.treat.faults.execution import EXECUTION_FAULTS
from analysis.treat.faults.flights import FLIGHT_FAULTS
from analysis.treat.faults.requests import REQUEST_FAULTS
from analysis.treat.faults.results import RESULT_FAULTS
from analysis.treat.faults.shape import SHAPE_FAULTS

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        *FLIGHT_FAULTS,
        *CACHE_FAULTS,
        *REQUEST_FAULTS,
        *SHAPE_FAULTS,
        *BYTES_FAULTS,
        *RESULT_FAULTS,
        *ARGUMENT_FAULTS,
        *EXECUTION_FAULTS,
    )
}
"""By name, which begins with `fault:`."""

__all__ = ["EXECUTION_FAULTS", "FAULTS", "Fault", "Struck"]
