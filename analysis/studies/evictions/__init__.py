"""Study of notebook 03: failure rate against evictions."""

from analysis.studies.evictions.figures import evictions_figure
from analysis.studies.evictions.plan import force_duplicate_nodes, sweeps
from analysis.studies.evictions.words import duplicates_in_words, evictions_in_words

__all__ = [
    "duplicates_in_words",
    "evictions_figure",
    "evictions_in_words",
    "force_duplicate_nodes",
    "sweeps",
]
