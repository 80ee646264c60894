"""Causes: hypotheses about a failure, each held against its treatment, and the verdicts on them."""

from analysis.causes.hypotheses import HYPOTHESES, Hypothesis, applicable, arms
from analysis.causes.verdicts import Arm, Verdict, verdicts

__all__ = ["HYPOTHESES", "Arm", "Hypothesis", "Verdict", "applicable", "arms", "verdicts"]
