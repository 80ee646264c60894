"""One function a figure: each takes frames of a run and returns a matplotlib Figure, or a table."""

from analysis.plots.failure_rate import failure_rate
from analysis.plots.hit_rate import hit_rate
from analysis.plots.invocations import invocations
from analysis.plots.latency import latency
from analysis.plots.memory import memory
from analysis.plots.outcomes import outcomes
from analysis.plots.page_lifetimes import page_lifetimes
from analysis.plots.page_map import page_map
from analysis.plots.pages_over_time import pages_over_time
from analysis.plots.tables import (
    HtmlTable,
    asked_again,
    facts,
    failed_trials,
    rates_table,
    wrong_answers,
)
from analysis.plots.trie import trie, tries

__all__ = [
    "HtmlTable",
    "asked_again",
    "facts",
    "failed_trials",
    "failure_rate",
    "hit_rate",
    "invocations",
    "latency",
    "memory",
    "outcomes",
    "page_lifetimes",
    "page_map",
    "pages_over_time",
    "rates_table",
    "trie",
    "tries",
    "wrong_answers",
]
