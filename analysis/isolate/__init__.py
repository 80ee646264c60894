"""The cache by itself: every order in which requests can use it, on the release's own classes.

`examine` runs scenarios under every interleaving, at the granularity of the cache's operations, and
holds the cache after each step against what a correct one may do. `replay` carries out a schedule.
"""

from __future__ import annotations

from analysis.isolate.examine import examine, leave_out
from analysis.isolate.opinion import second_opinion
from analysis.isolate.races import Race, Races, find_races
from analysis.isolate.replay import Replay, replay
from analysis.isolate.result import Covered, Failure, Result
from analysis.isolate.scenarios import SCENARIOS, IsolationError, Request, Scenario, Schedule, Step
from analysis.isolate.spec import RULES, Broken

__all__ = [
    "RULES",
    "SCENARIOS",
    "Broken",
    "Covered",
    "Failure",
    "IsolationError",
    "Race",
    "Races",
    "Replay",
    "Request",
    "Result",
    "Scenario",
    "Schedule",
    "Step",
    "examine",
    "find_races",
    "leave_out",
    "replay",
    "second_opinion",
]
