"""Study of notebook 00: from one failed request to its cause and what fixes it."""

from analysis.studies.one_failure.plan import Suspect as Suspect
from analysis.studies.one_failure.plan import example as example
from analysis.studies.one_failure.plan import explain_first as explain_first
from analysis.studies.one_failure.plan import failing_sweep as failing_sweep
from analysis.studies.one_failure.plan import suspects as suspects
from analysis.studies.one_failure.plan import treated_sweep as treated_sweep
from analysis.studies.one_failure.tried import Tried as Tried
from analysis.studies.one_failure.tried import tried as tried
from analysis.studies.one_failure.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.one_failure.words import suspects_table as suspects_table
from analysis.studies.one_failure.words import tried_table as tried_table
