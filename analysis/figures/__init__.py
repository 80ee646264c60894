"""One function a figure: each takes frames of a run and returns a matplotlib Figure, or a table."""

from analysis.figures.cost import cost_curves, cost_ratios
from analysis.figures.cost_table import cost_table
from analysis.figures.evictions import evictions
from analysis.figures.explanation import explanation_figure
from analysis.figures.failure_rate import failure_rate
from analysis.figures.finding import finding_figure
from analysis.figures.findings_chart import findings_chart
from analysis.figures.findings_table import checked_table, findings_table, leads_table
from analysis.figures.flights import flights
from analysis.figures.hit_rate import hit_rate
from analysis.figures.interleaving import interleaving
from analysis.figures.isolation_table import broken_rules_table, isolation_table, left_out_table
from analysis.figures.ladder import ladder, ladders
from analysis.figures.latency import latency
from analysis.figures.leads import lead_times
from analysis.figures.lock_cost import lock_cost
from analysis.figures.memory import memory
from analysis.figures.outcomes import outcomes
from analysis.figures.page_lifetimes import page_lifetimes
from analysis.figures.page_map import page_map
from analysis.figures.pages_over_time import pages_over_time
from analysis.figures.stress import stress
from analysis.figures.style import show
from analysis.figures.tables import (
    HtmlTable,
    asked_again,
    facts,
    failed_cells,
    rates_table,
    wrong_answers,
)
from analysis.figures.trie import trie, tries
from analysis.figures.verdicts import verdict_figure, verdict_table

__all__ = [
    "HtmlTable",
    "asked_again",
    "broken_rules_table",
    "checked_table",
    "cost_curves",
    "cost_ratios",
    "cost_table",
    "evictions",
    "explanation_figure",
    "facts",
    "failed_cells",
    "failure_rate",
    "finding_figure",
    "findings_chart",
    "findings_table",
    "flights",
    "hit_rate",
    "interleaving",
    "isolation_table",
    "ladder",
    "ladders",
    "latency",
    "lead_times",
    "leads_table",
    "left_out_table",
    "lock_cost",
    "memory",
    "outcomes",
    "page_lifetimes",
    "page_map",
    "pages_over_time",
    "rates_table",
    "show",
    "stress",
    "trie",
    "tries",
    "verdict_figure",
    "verdict_table",
    "wrong_answers",
]
