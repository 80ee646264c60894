"""Study of notebook 03: failure rate against evictions."""

from analysis.studies.evictions.figures import evictions_figure as evictions_figure
from analysis.studies.evictions.plan import Crowd as Crowd
from analysis.studies.evictions.plan import crowded as crowded
from analysis.studies.evictions.plan import force_duplicate_nodes as force_duplicate_nodes
from analysis.studies.evictions.plan import sweeps as sweeps
from analysis.studies.evictions.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.evictions.words import duplicates_in_words as duplicates_in_words
from analysis.studies.evictions.words import evictions_in_words as evictions_in_words
