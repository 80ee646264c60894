"""Study of notebook 05: hypotheses about failures, each tested by its treatment."""

from analysis.studies.causes.estimates import Arm, Measurement, measure, whole_arm
from analysis.studies.causes.figures import verdict_figure, verdict_table
from analysis.studies.causes.hypotheses import HYPOTHESES, Hypothesis, applicable, arms
from analysis.studies.causes.scenarios import (
    UNDO,
    Scenario,
    decide_all,
    first_failure,
    reintroduced,
    scenarios,
)
from analysis.studies.causes.verdicts import Verdict, decide
from analysis.studies.causes.words import (
    against_the_report,
    answer_in_a_sentence,
    causes_in_words,
    counted_in_words,
    put_in_words,
    whole_in_words,
)

__all__ = [
    "HYPOTHESES",
    "UNDO",
    "Arm",
    "Hypothesis",
    "Measurement",
    "Scenario",
    "Verdict",
    "against_the_report",
    "answer_in_a_sentence",
    "applicable",
    "arms",
    "causes_in_words",
    "counted_in_words",
    "decide",
    "decide_all",
    "first_failure",
    "measure",
    "put_in_words",
    "reintroduced",
    "scenarios",
    "verdict_figure",
    "verdict_table",
    "whole_arm",
    "whole_in_words",
]
