"""The cache by itself: every order in which requests can use it, on the release's own classes.

`examine` runs scenarios under every interleaving, at the granularity of the cache's operations, and
holds the cache after each step against what a correct one may do. `replay` carries out a schedule.
"""

from __future__ import annotations

from analysis.interleavings.examine import examine, leave_out
from analysis.interleavings.opinion import second_opinion
from analysis.interleavings.races import Race, Races, find_races
from analysis.interleavings.replay import Replay, replay
from analysis.interleavings.result import Covered, Failure, Result
from analysis.interleavings.scenarios import (
    SCENARIOS,
    IsolationError,
    Request,
    Scenario,
    Schedule,
    Step,
)
from analysis.interleavings.spec import RULES, Broken

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
