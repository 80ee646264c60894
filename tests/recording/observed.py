"""What the tests of observed engines run first in the engine's process."""

PRELUDE = """
from collections import Counter
from analysis.recording import observe
import warnings
sharing = {sharing!r}
PROMPTS = ["1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 ", "10 20 30 40 50 60 70 80 90 100 110 ",
           "3 6 9 12 15 18 21 24 27 30 33 36 39 ", "2 4 6 8 10 12 14 16 18 20 22 24 26 28 "]
def ask(engine, tokens=20):
    return [f.result().tokens for f in [engine.submit(p, tokens) for p in PROMPTS]]
"""
