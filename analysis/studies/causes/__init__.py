"""Study of notebook 05: hypotheses about failures, each tested by its treatment."""

from analysis.studies.causes.estimates import Arm as Arm
from analysis.studies.causes.estimates import Measurement as Measurement
from analysis.studies.causes.estimates import measure as measure
from analysis.studies.causes.estimates import whole_arm as whole_arm
from analysis.studies.causes.figures import verdict_figure as verdict_figure
from analysis.studies.causes.figures import verdict_table as verdict_table
from analysis.studies.causes.hypotheses import HYPOTHESES as HYPOTHESES
from analysis.studies.causes.hypotheses import Hypothesis as Hypothesis
from analysis.studies.causes.hypotheses import applicable as applicable
from analysis.studies.causes.hypotheses import arms as arms
from analysis.studies.causes.scenarios import UNDO as UNDO
from analysis.studies.causes.scenarios import Scenario as Scenario
from analysis.studies.causes.scenarios import decide_all as decide_all
from analysis.studies.causes.scenarios import first_failure as first_failure
from analysis.studies.causes.scenarios import own_scenario as own_scenario
from analysis.studies.causes.scenarios import reintroduced as reintroduced
from analysis.studies.causes.scenarios import scenarios as scenarios
from analysis.studies.causes.verdicts import Verdict as Verdict
from analysis.studies.causes.verdicts import decide as decide
from analysis.studies.causes.words import against_the_report as against_the_report
from analysis.studies.causes.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.causes.words import causes_in_words as causes_in_words
from analysis.studies.causes.words import counted_in_words as counted_in_words
from analysis.studies.causes.words import put_in_words as put_in_words
from analysis.studies.causes.words import whole_in_words as whole_in_words
