"""Tables and the answer of notebook 00 in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import finding_name, p_value
from analysis.diagnosis import Explanation
from analysis.plots.tables import HtmlTable, html_table
from analysis.studies.one_failure.plan import Suspect
from analysis.studies.one_failure.tried import Tried
from analysis.studies.wording import rate_cell

_fill = partial(paragraph, "analysis.studies.one_failure", "words.j2")


def suspects_table(found: Sequence[Suspect]) -> HtmlTable:
    """Show which treatment may remove which finding, and what it tests."""
    rows = [(one.treatment, one.finding, one.hypothesis) for one in found]
    frame = pd.DataFrame(rows, columns=["treatment", "finding", "hypothesis"])
    return html_table(frame, empty="No treatment is known for these findings.")


def tried_table(found: Sequence[Tried]) -> HtmlTable:
    """Show for each set of treatments the failures without and with it, and the verdict."""
    rows = [
        {
            "treatments": " + ".join(one.treatments),
            "failed without": rate_cell(one.without),
            "failed with": rate_cell(one.with_them),
            "pairs of engines": one.pairs,
            "p, adjusted": p_value(one.p_value),
            "verdict": _fill("verdict", one),
        }
        for one in found
    ]
    below = "Sign-flip test over pairs of engines that got the same requests, adjusted by Holm."
    return html_table(pd.DataFrame(rows), empty="No treatment was tried.", below=below)


def answer_in_a_sentence(explanation: Explanation | None, found: Sequence[Tried]) -> str:
    """Return why the request failed, and what fixes it; None says that none failed."""
    if explanation is None:
        return "No request failed. Try fewer pages, more clients or more rounds."
    first = explanation.findings[0] if explanation.findings else None
    name = finding_name(first.rule, first.cause) if first else ""
    best = next((one for one in found if one.status == "removed"), None)
    less = [one for one in found if one.status == "fewer"]
    return _fill("answer", explanation, first, name, best, less, found)
