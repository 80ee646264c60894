"""One function a figure: each takes frames of a run and returns a matplotlib Figure, or a table."""

from analysis.plots.failure_rate import failure_rate as failure_rate
from analysis.plots.failure_rate import failure_rate_by_check as failure_rate_by_check
from analysis.plots.hit_rate import hit_rate as hit_rate
from analysis.plots.invocations import invocations as invocations
from analysis.plots.latency import latency as latency
from analysis.plots.memory import memory as memory
from analysis.plots.outcomes import outcomes as outcomes
from analysis.plots.page_lifetimes import page_lifetimes as page_lifetimes
from analysis.plots.pages_over_time import pages_over_time as pages_over_time
from analysis.plots.tables import HtmlTable as HtmlTable
from analysis.plots.tables import asked_again as asked_again
from analysis.plots.tables import checks_table as checks_table
from analysis.plots.tables import facts as facts
from analysis.plots.tables import failed_trials as failed_trials
from analysis.plots.tables import rates_table as rates_table
from analysis.plots.tables import wrong_answers as wrong_answers
from analysis.plots.trie import trie as trie
from analysis.plots.trie import tries as tries
