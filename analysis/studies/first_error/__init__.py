"""Study of notebook 04: the first finding of the sanitizer against the first wrong token."""

from analysis.studies.first_error.detection_lead import detection_lead
from analysis.studies.first_error.figures import (
    checked_table,
    findings_chart,
    findings_table,
    lead_times,
    leads_table,
)
from analysis.studies.first_error.plan import sanitized_sweep
from analysis.studies.first_error.words import answer_in_a_sentence, findings_in_words

__all__ = [
    "answer_in_a_sentence",
    "checked_table",
    "detection_lead",
    "findings_chart",
    "findings_in_words",
    "findings_table",
    "lead_times",
    "leads_table",
    "sanitized_sweep",
]
