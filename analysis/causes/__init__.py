"""Causes: hypotheses about a failure, each held against its treatment, and the verdicts on them."""

from analysis.causes.hypotheses import HYPOTHESES, Hypothesis, applicable, arms
from analysis.causes.scenarios import Scenario, first_failure, scenarios
from analysis.causes.verdicts import Arm, Verdict, verdicts, whole_arm

__all__ = [
    "HYPOTHESES",
    "Arm",
    "Hypothesis",
    "Scenario",
    "Verdict",
    "applicable",
    "arms",
    "first_failure",
    "scenarios",
    "verdicts",
    "whole_arm",
]
