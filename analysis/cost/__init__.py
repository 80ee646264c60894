"""What treatments cost: time, throughput, memory and hits against an untreated engine; a lock."""

from analysis.cost.arms import ALL, UNTREATED, arm_name, arms
from analysis.cost.compare import costs, pairs_needed
from analysis.cost.locking import (
    alternate,
    alternated,
    count_operations,
    lock_costs,
    lock_share,
    time_operations,
)
from analysis.cost.measures import METRICS, WATCHED, Metric, measure, watched

__all__ = [
    "ALL",
    "METRICS",
    "UNTREATED",
    "WATCHED",
    "Metric",
    "alternate",
    "alternated",
    "arm_name",
    "arms",
    "costs",
    "count_operations",
    "lock_costs",
    "lock_share",
    "measure",
    "pairs_needed",
    "time_operations",
    "watched",
]
