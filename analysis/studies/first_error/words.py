"""The answer of notebook 04 in words: what the sanitizer found, and how early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised, counted, markdown_table
from analysis.plots.style import rows_of
from analysis.runs.store import Run
from analysis.runs.tables import RequestCounts, arm_of, count_requests
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA
from analysis.sanitizer.recorded import Checked
from analysis.stats.clustered import Rate, rate
from analysis.studies.first_error.detection_lead import detection_lead
from analysis.studies.wording import rate_cell

_fill = partial(paragraph, "analysis.studies.first_error", "words.j2")
_SETTING = ("release", "prefix_sharing", "treatments")
_REQUEST = ["trial_id", "request_id"]


@dataclass(frozen=True)
class _Measured:
    """What a run shows of one setting."""

    setting: Checked
    counts: RequestCounts
    wrong: int
    """Wrong answers."""
    readers: Rate
    """Accepted requests that read wrong data."""
    read: int
    """Requests with a finding of wrong data."""
    first: pd.Series | None
    """The first such finding."""
    early: pd.DataFrame
    """Wrong answers with an earlier finding of wrong data, as of `detection_lead`."""
    risks: int
    """Causes of other findings."""

    @property
    def name(self) -> str:
        treatments = f", {' + '.join(self.setting.treatments)}" if self.setting.treatments else ""
        return f"prefix sharing {self.setting.prefix_sharing}{treatments}"

    @property
    def calls(self) -> pd.Series:
        """Calls of the model between that finding and the first wrong token."""
        return self.early["invocations_before"].astype(float)

    @property
    def row(self) -> dict[str, object]:
        """What a table shows of it."""
        early = len(self.early)
        ms = 1000 * self.early["seconds_before"].median()
        return {
            "prefix sharing": self.setting.prefix_sharing,
            "treatments": " + ".join(self.setting.treatments),
            "wrong answers": f"{self.wrong} of {self.counts.accepted}",
            "other failures": self.counts.failed - self.wrong,
            "rejected": self.counts.rejected,
            "requests that read wrong data": rate_cell(self.readers),
            "wrong answers after wrong data": f"{early} of {self.wrong}" if self.wrong else "",
            "calls before the wrong token": _fill("lead", self.calls, ms) if early else "",
            "other rules broken": self.risks,
        }


def findings_in_words(run: Run, checked: Sequence[Checked]) -> str:
    """Return what was found and how early as Markdown: a line and a row for each setting.

    `checked` is what `check_run` returns for this sanitized run.
    """
    found = _measured(run, checked)
    if not found:
        return "No trial was checked, so there is no result."
    lines = "\n".join(f"- **{one.name}**: {_fill('setting', one)}" for one in found)
    return f"{lines}\n\n{markdown_table([one.row for one in found])}"


def small_in_words(run: Run, checked: Checked) -> str:
    """Return how one engine with few pages ended, and how many rules were broken."""
    [trial] = run.trials.to_dict("records")
    outcomes = run.requests["outcome"].value_counts().items()
    rules = len({rule for rule, _ in checked.groups})
    ended = "The engine ended normally." if trial["status"] == "ok" else str(trial["status_detail"])
    return " ".join([
        f"Requests: {', '.join(f'{number} {name}' for name, number in outcomes)}.",
        ended,
        f"{capitalised(counted(rules, 'rule was', 'rules were'))} broken.",
        *checked.not_checked,
    ])  # fmt: skip


def answer_in_a_sentence(run: Run, checked: Sequence[Checked], also: Sequence[str] = ()) -> str:
    """Return the answer as one sentence for the index of a report, then the sentences `also`."""
    if any(setting.void for setting in checked):
        return " ".join(["Invalid: a planted fault was not detected.", *also])
    clauses = [_fill("clause", one) for one in _measured(run, checked)]
    sentence = "; ".join(clauses) or "no trial was checked"
    return " ".join([f"{capitalised(sentence)}.", *also])


def _measured(run: Run, checked: Sequence[Checked]) -> list[_Measured]:
    leads = detection_lead(run)
    return [_measure(run, leads, setting) for setting in checked]


def _measure(run: Run, leads: pd.DataFrame, setting: Checked) -> _Measured:
    names = run.trials["treatments"].map(arm_of)
    key = {column: getattr(setting, column) for column in _SETTING}
    trials = rows_of(run.trials.assign(treatments=names), key)["trial_id"]
    requests, found, early = (
        frame[frame["trial_id"].isin(trials)] for frame in (run.requests, run.findings, leads)
    )
    accepted = requests[requests["outcome"] != "rejected"]
    wrong_data = found[found["severity"] == WRONG_DATA].sort_values(["t_s", "seq"])
    read = wrong_data[_REQUEST].dropna().drop_duplicates()
    hit, sizes = read.groupby("trial_id").size(), accepted.groupby("trial_id").size()
    readers = [min(int(hit.get(trial, 0)), int(size)) for trial, size in sizes.items()]
    return _Measured(
        setting,
        count_requests(requests["outcome"]),
        int((accepted["outcome"] == "wrong").sum()),
        rate(readers, sizes.tolist()),
        len(read),
        wrong_data.iloc[0] if len(wrong_data) else None,
        early[early["invocation_id"].notna()],
        found.loc[found["severity"] == AT_RISK, ["rule", "cause"]].drop_duplicates().shape[0],
    )
