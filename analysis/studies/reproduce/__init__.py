"""Study of notebook 01: the reported test, and failure rate against concurrency."""

from analysis.studies.reproduce.figures import reported_test_figure as reported_test_figure
from analysis.studies.reproduce.figures import reported_test_table as reported_test_table
from analysis.studies.reproduce.plan import ask_again as ask_again
from analysis.studies.reproduce.plan import run_both_sides as run_both_sides
from analysis.studies.reproduce.reported_test import run_reported_test as run_reported_test
from analysis.studies.reproduce.reported_test import treated as treated
from analysis.studies.reproduce.words import alone_in_words as alone_in_words
from analysis.studies.reproduce.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.reproduce.words import answer_in_words as answer_in_words
from analysis.studies.reproduce.words import first_step_in_words as first_step_in_words
from analysis.studies.reproduce.words import ran_in_words as ran_in_words
from analysis.studies.reproduce.words import reported_test_in_words as reported_test_in_words
