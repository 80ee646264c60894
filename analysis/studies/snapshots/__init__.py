"""Study of notebook 02: what requests take from the page pool, and whether they return it."""

from analysis.studies.snapshots.plan import (
    Exhausted,
    Session,
    Step,
    exhaust_pool,
    exhaust_pools,
    record,
)
from analysis.studies.snapshots.words import answer_in_a_sentence, leak_in_words, put_back_in_words

__all__ = [
    "Exhausted", "Session", "Step", "answer_in_a_sentence", "exhaust_pool", "exhaust_pools",
    "leak_in_words", "put_back_in_words", "record",
]  # fmt: skip
