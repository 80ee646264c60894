"""What treatments cost: time, throughput, memory and hits against an untreated engine; a lock."""

from analysis.studies.cost.arms import ALL, UNTREATED, arm_name, arms
from analysis.studies.cost.compare import comparisons, costs, pairs_needed
from analysis.studies.cost.lock_figures import LockFigures, measure_lock
from analysis.studies.cost.locking import (
    alternate,
    alternated,
    count_operations,
    lock_costs,
    lock_share,
    time_operations,
)
from analysis.studies.cost.measures import METRICS, WATCHED, Metric, measure, watched
from analysis.studies.cost.sweeps import Measured, full_batch, run_costs

__all__ = [
    "ALL",
    "METRICS",
    "UNTREATED",
    "WATCHED",
    "LockFigures",
    "Measured",
    "Metric",
    "alternate",
    "alternated",
    "arm_name",
    "arms",
    "comparisons",
    "costs",
    "count_operations",
    "full_batch",
    "lock_costs",
    "lock_share",
    "measure",
    "measure_lock",
    "pairs_needed",
    "run_costs",
    "time_operations",
    "watched",
]
