"""Study of notebook 04: the first finding of the sanitizer against the first wrong token."""

from analysis.studies.first_error.detection_lead import detection_lead as detection_lead
from analysis.studies.first_error.figures import checked_table as checked_table
from analysis.studies.first_error.figures import findings_chart as findings_chart
from analysis.studies.first_error.figures import findings_table as findings_table
from analysis.studies.first_error.figures import lead_times as lead_times
from analysis.studies.first_error.figures import leads_table as leads_table
from analysis.studies.first_error.plan import compared_slots as compared_slots
from analysis.studies.first_error.plan import sanitized_sweep as sanitized_sweep
from analysis.studies.first_error.plan import small_sweep as small_sweep
from analysis.studies.first_error.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.first_error.words import findings_in_words as findings_in_words
from analysis.studies.first_error.words import small_in_words as small_in_words
