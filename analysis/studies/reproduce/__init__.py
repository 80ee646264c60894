"""Study of notebook 01: failure rate against concurrency."""

from analysis.studies.reproduce.plan import ask_again as ask_again
from analysis.studies.reproduce.plan import observed_sweep as observed_sweep
from analysis.studies.reproduce.words import alone_in_words as alone_in_words
from analysis.studies.reproduce.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.reproduce.words import answer_in_words as answer_in_words
from analysis.studies.reproduce.words import ran_in_words as ran_in_words
