"""Study of notebook 01: failure rate against concurrency."""

from analysis.studies.reproduce.plan import ask_again, observed_sweep
from analysis.studies.reproduce.words import (
    alone_in_words,
    answer_in_a_sentence,
    answer_in_words,
    ran_in_words,
)

__all__ = [
    "alone_in_words",
    "answer_in_a_sentence",
    "answer_in_words",
    "ask_again",
    "observed_sweep",
    "ran_in_words",
]
