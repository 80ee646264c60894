"""Study of notebook 09: what fails on which release, and which release is safe for what."""

from analysis.studies.releases.catalogue import demonstrated as demonstrated
from analysis.studies.releases.catalogue import demonstrations as demonstrations
from analysis.studies.releases.estimates import by_setting as by_setting
from analysis.studies.releases.estimates import causes as causes
from analysis.studies.releases.figures import causes_figure as causes_figure
from analysis.studies.releases.figures import costs_figure as costs_figure
from analysis.studies.releases.figures import demonstrations_figure as demonstrations_figure
from analysis.studies.releases.figures import outcomes_figure as outcomes_figure
from analysis.studies.releases.figures import outside_figure as outside_figure
from analysis.studies.releases.plan import matrix as matrix
from analysis.studies.releases.plan import outside as outside
from analysis.studies.releases.plan import run_or_load as run_or_load
from analysis.studies.releases.words import answer_in_a_sentence as answer_in_a_sentence
from analysis.studies.releases.words import causes_in_words as causes_in_words
from analysis.studies.releases.words import demonstrated_in_words as demonstrated_in_words
from analysis.studies.releases.words import outside_in_words as outside_in_words
from analysis.studies.releases.words import safety_in_words as safety_in_words
