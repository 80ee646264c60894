"""Model checking of the cache alone, on the release's own classes.

`examine` runs scenarios under every interleaving of the cache's operations, and checks the cache
after each operation against a sequential model. `replay` runs one schedule.
"""

from __future__ import annotations

from analysis.interleavings.examine import examine, leave_out
from analysis.interleavings.races import Race, Races, find_races
from analysis.interleavings.replay import Replay, replay
from analysis.interleavings.result import Covered, Failure, Result
from analysis.interleavings.sanitized import cross_check
from analysis.interleavings.scenarios import SCENARIOS, IsolationError, Scenario, Schedule, Step
from analysis.interleavings.spec import RULES, Violation

__all__ = [
    "RULES",
    "SCENARIOS",
    "Covered",
    "Failure",
    "IsolationError",
    "Race",
    "Races",
    "Replay",
    "Result",
    "Scenario",
    "Schedule",
    "Step",
    "Violation",
    "cross_check",
    "examine",
    "find_races",
    "leave_out",
    "replay",
]
