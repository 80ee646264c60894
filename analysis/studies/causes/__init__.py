"""Causes: hypotheses about a failure, each held against its treatment, and the verdicts on them."""

from analysis.studies.causes.hypotheses import HYPOTHESES, Hypothesis, applicable, arms
from analysis.studies.causes.scenarios import Scenario, first_failure, judge_all, scenarios
from analysis.studies.causes.verdicts import Arm, Asked, Verdict, asked, judge, whole_arm

__all__ = [
    "HYPOTHESES",
    "Arm",
    "Asked",
    "Hypothesis",
    "Scenario",
    "Verdict",
    "applicable",
    "arms",
    "asked",
    "first_failure",
    "judge",
    "judge_all",
    "scenarios",
    "whole_arm",
]
