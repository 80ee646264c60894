"""Study of notebook 02: what requests take from the page pool, and whether they return it."""

from analysis.studies.snapshots.plan import Step, exhaust_pool
from analysis.studies.snapshots.words import answer_in_a_sentence, leak_in_words, put_back_in_words

__all__ = ["Step", "answer_in_a_sentence", "exhaust_pool", "leak_in_words", "put_back_in_words"]
