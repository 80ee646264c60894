"""One function a figure: each takes frames of a run and returns a matplotlib Figure, or a table."""

from analysis.figures.failure_rate import failure_rate
from analysis.figures.latency import latency
from analysis.figures.outcomes import outcomes
from analysis.figures.style import show
from analysis.figures.tables import (
    HtmlTable,
    asked_again,
    facts,
    failed_cells,
    rates_table,
    wrong_answers,
)

__all__ = [
    "HtmlTable",
    "asked_again",
    "facts",
    "failed_cells",
    "failure_rate",
    "latency",
    "outcomes",
    "rates_table",
    "show",
    "wrong_answers",
]
